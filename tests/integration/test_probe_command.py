"""`ssdistill probe` on digits: a saved model, its int8 ONNX file, and a bare ONNX file."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import ssdistill
from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.commands.main import main
from ssdistill.compress import Context
from ssdistill.compress.quantize import Quantize
from ssdistill.data.sources.digits import Digits
from ssdistill.evaluate.protocols.knn import Knn
from ssdistill.evaluate.subject import Subject
from ssdistill.measure.hardware import int8_saturates
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import PROTOCOLS


def build(channels):
    """An encoder for 16x16 images, the same for the same width."""
    torch.manual_seed(channels)
    widths = (channels, 2 * channels, 2 * channels, 2 * channels)
    args = {"layers": (1, 1, 0, 0), "channels": widths, "stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16).eval()


def digits(count, seed):
    """Digits as an encoder of 16 pixels sees them."""
    pixels = torch.from_numpy(Digits().split("train").array()[:count].copy()).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(pixels.float() / 255, 16, mode="bilinear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``teacher/s0/model``, ``int8/s0/model``, ``student/s0/model`` and ``bare.onnx``."""
    root = tmp_path_factory.mktemp("models")
    teacher = build(16)
    save_encoder(teacher, root / "teacher" / "s0" / "model")
    save_encoder(build(4), root / "student" / "s0" / "model")
    (root / "work").mkdir()
    step = Quantize(
        scheme="u8s8", calibration_images=64, check_images=36, reduce_range=int8_saturates()
    )
    int8 = step.apply(teacher, Context(digits, root / "work"))
    save_encoder(int8, root / "int8" / "s0" / "model")
    shutil.copy(root / "int8" / "s0" / "model" / "model.onnx", root / "bare.onnx")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("runs"))


def probe(capsys, *words):
    status = main(["probe", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_one_model_is_shown_with_every_measure_and_written_to_every_file(
    folder, cache, tmp_path, capsys
):
    files = {name: tmp_path / "new" / f"found.{name}" for name in ("json", "csv", "markdown")}
    words = [w for name, path in files.items() for w in (f"--{name}", path)]
    page = tmp_path / "found.html"
    status, out, _ = probe(
        capsys, folder / "teacher/s0", "--data", "digits", "--cache", cache, *words, "--page", page
    )  # fmt: skip
    assert status == 0
    for word in ("linear", "k-NN", "low-shot", "balanced_accuracy", "recall", "effective rank"):
        assert word in out
    found = json.loads(files["json"].read_text())
    (model,) = found["models"]
    assert model["name"] == "teacher" and found["data"]["settings"] == {"kind": "digits"}
    assert set(model["results"]) >= {"linear", "knn", "low_shot"}

    # What the protocol itself says of the same encoder on the same images.
    from ssdistill.evaluate.opening.images import open_images

    shown = open_images("digits", root=cache)
    subject = Subject(load(folder / "teacher/s0"), shown.train, shown.test)
    expected = Knn().run(subject)
    assert model["metrics"]["probe/knn/top1"] == expected["top1"]
    assert f"{expected['top1']:.2f}" in out and f"{expected['top1']:.2f}" in page.read_text()
    lines = list(csv.DictReader(files["csv"].open()))
    assert {line["model"] for line in lines} == {"teacher"}
    assert "### Classes" in files["markdown"].read_text()


def test_int8_and_bare_files_stand_beside_the_model_they_were_made_of(
    folder, cache, tmp_path, capsys
):
    path = tmp_path / "found.json"
    status, out, err = probe(
        capsys, folder / "teacher", folder / "int8", "--data", "digits", "--protocols", "knn",
        folder / "student", folder / "bare.onnx", "--runs", cache, "--json", path, "knn.k=10",
        "--margin", 3,
    )  # fmt: skip
    assert status == 0 and "[4/4] bare" in err
    found = json.loads(path.read_text())
    teacher, int8, student, bare = found["models"]
    assert int8["metrics"]["compress/bytes"] < teacher["metrics"]["compress/bytes"]
    # The same file, with a description beside it and without.
    same = {k: v for k, v in bare["metrics"].items() if k.startswith(("probe", "collapse"))}
    assert same == {k: int8["metrics"][k] for k in same}
    assert bare["notices"] and not int8["notices"]
    assert int8["metrics"]["agree/cka"] > 0.99 > student["metrics"]["agree/cka"]
    verdicts = {one["model"]: one["verdict"] for one in found["paired"]}
    assert verdicts["int8"] == verdicts["bare"] == "equivalent"
    assert "equivalent within 3" in out and "Against teacher" in out and "bare:" in out
    assert all(m["results"]["knn"]["settings"]["k"] == 10 for m in found["models"])


def test_every_protocol_can_be_asked_for_and_a_file_is_not_trained(folder, cache, tmp_path, capsys):
    path = tmp_path / "found.json"
    status, out, _ = probe(
        capsys, folder / "student", folder / "int8", "--data", "digits", "--cache", cache,
        "--protocols", ",".join(PROTOCOLS.classes), "robust.images=40", "robust.severities=[3]",
        "finetune.steps=3", "linear_sgd.steps=3", "transfer.datasets=[digits]", "--json", path,
    )  # fmt: skip
    assert status == 0
    student, int8 = json.loads(path.read_text())["models"]
    assert student["results"].keys() == PROTOCOLS.classes.keys()
    assert student["results"].keys() - int8["results"].keys() == {"finetune"}
    out = " ".join(out.split())
    assert "int8: finetune skipped" in out and "is exported for a runtime" in out
    assert "robust top-1 (%)" in out and "retrieval mAP (%)" in out


def test_a_folder_of_pictures_is_stored_as_large_as_the_model_wants(
    folder, tmp_path, capsys, cache
):
    from PIL import Image

    rng = np.random.default_rng(0)
    for level, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(15):
            pixels = rng.integers(0, 120, (20, 30, 3)) + 120 * level
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"photos/{name}/{number}.png")
    words = (folder / "student", "--data", f"{tmp_path / 'photos'}/", "--protocols", "knn")
    path = tmp_path / "found.json"
    status, out, _ = probe(capsys, *words, "knn.k=3", "--runs", cache, "--json", path)
    assert status == 0 and "light" in out
    data = json.loads(path.read_text())["data"]
    assert data["image_size"] == 16 and data["train_images"] + data["test_images"] == 30


def test_without_labels_the_label_free_metrics_are_all(folder, cache, tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "bare.npz", train_images=x, test_images=x)
    words = (folder / "student", folder / "teacher", "--data", tmp_path / "bare.npz")
    status, out, _ = probe(capsys, *words, "--runs", cache)
    out = " ".join(out.split())
    assert status == 0 and "neighbors" in out and "top-1" not in out
    assert "note: no labels: skipping evaluation" in out
    status, out, err = probe(capsys, *words, "--protocols", "knn", "--runs", cache)
    assert (status, out) == (2, "") and "no labels, required by knn" in err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "digits"], "a model is required"),
        (["{teacher}"], "--data is required"),
        (["{teacher}", "--data", "digts"], "did you mean 'digits'"),
        (["{teacher}", "--data", "digits", "--protocols", "lnear"], "did you mean 'linear'"),
        (["{teacher}", "--data", "digits", "knn.kk=3"], "did you mean 'k'"),
        (["{teacher}", "--data", "npz", "data.pth=x"], "data.pth: no such setting"),
        (["/nowhere/model", "--data", "digits"], "/nowhere/model: no such file or folder; check"),
        (["{folder}/work", "--data", "digits"], "not the folder of a saved model"),
        (["timm:resnet188", "--data", "digits"], "did you mean 'resnet18'"),
        (["{teacher}", "{teacher}", "--data", "digits"], "is listed twice"),
        (["{teacher}", "--data", "digits", "--mean", "0", "0", "0"], "pass both or neither"),
        (["{teacher}", "--data", "digits", "--page", "{folder}"], "is a folder; pass a file name"),
        (["{teacher}", "--data", "digits", "--json", "/proc/nope/x.json"], "name a place that can"),
    ],
)
def test_a_mistake_is_one_line(words, message, folder, cache, capsys):
    words = [word.format(teacher=folder / "teacher", folder=folder) for word in words]
    status, out, err = probe(capsys, *words, "--runs", cache)
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("words", [["--image-size", "0"], ["--nonsense"], ["--precision", "fp8"]])
def test_an_option_that_is_not_understood_has_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["probe", "x", "--data", "digits", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: --")


def test_the_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["probe", "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in ("PATH", "timm:NAME[@FILE]", "--protocols", "examples:", "--page"):
        assert word in out


def test_the_same_is_one_call_in_python(folder, cache):
    path, asked = folder / "teacher", {"holdout": 0.2, "root": cache, "progress": False}
    found = ssdistill.probe(
        path, "digits", ["linear"], settings={"linear": {"holdout": 0.2}}, root=cache
    )
    by_path = ssdistill.evaluate.linear(path, "digits", **asked)
    by_encoder = ssdistill.evaluate.linear(load(path), {"kind": "digits"}, **asked)
    assert found.models[0].results["linear"].metrics == by_path.metrics == by_encoder.metrics
    assert by_path["top1"] > 50
