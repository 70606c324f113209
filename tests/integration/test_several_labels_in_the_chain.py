"""Images with several labels each, through checks, a run and the probe of finished models."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ssdistill.chain.data_checks import check_data
from ssdistill.chain.run import run
from ssdistill.commands.probe.files import to_csv, to_json, to_markdown
from ssdistill.commands.probe.page import render
from ssdistill.data.opening import open_source, open_stores
from ssdistill.errors import UserError
from ssdistill.evaluate.comparing.run import probe
from ssdistill.evaluate.protocols.transfer import Transfer
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.experiment.reading import load_experiment
from ssdistill.models.representation import Representation

NAMES = ("blue", "green", "red")
TINY = """
schema: 1
name: tiny
data: {kind: list, path: DATA, label_separator: "|", image_size: 16, test_fraction: 0.3}
teacher: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 2, batch_size: 16}
"""


def make_image(number):
    """Noise in which a label is a color, and its labels."""
    rng = np.random.default_rng(number)
    has_3 = rng.random(3) < 0.4
    pixels = rng.integers(0, 100, (16, 16, 3)) + 120 * has_3
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue(), [name for name, has in zip(NAMES[::-1], has_3, strict=True) if has]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("several"), [make_image(k) for k in range(120)]
    lines = ["path,label"]
    for k, (content, labels) in enumerate(rows):
        (folder / f"{k}.png").write_bytes(content)
        lines.append(f"{k}.png,{'|'.join(labels)}")
    (folder / "l.csv").write_text("\n".join(lines))
    table = pa.table({"image": [row[0] for row in rows], "label": [row[1] for row in rows]})
    pa.parquet.write_table(table, folder / "l.parquet")
    return folder


def mean_color(x_BCHW):
    return Representation(x_BCHW.mean((2, 3)))


def experiment_of(folder, tmp_path, *overrides):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("DATA", str(folder / "l.csv")))
    return load_experiment(tmp_path / "tiny.yaml", list(overrides))[0]


@pytest.mark.parametrize("kind", ["list", "parquet"])
def test_a_probe_by_default_says_what_it_leaves_out(folder, tmp_path, kind):
    data = {"kind": kind, "path": str(folder / ("l.csv" if kind == "list" else "l.parquet"))}
    data |= {"label_separator": "|"} if kind == "list" else {}
    probed = probe({"a": mean_color, "b": mean_color}, data, root=tmp_path, progress=False)
    assert probed.left_out == ("low_shot",)
    for model in probed.models:
        assert model.results.keys() == {"linear", "knn"}
        assert model.metrics["probe/linear/map"] > 95
        assert model.results["linear"].multi_label.names == NAMES
    markdown, content = to_markdown(probed), json.loads(to_json(probed))
    assert "linear mAP (%)" in markdown and "low_shot skipped, which requires one label" in markdown
    linear = content["models"][0]["results"]["linear"]
    assert [row["name"] for row in linear["classes"]] == list(NAMES)
    assert linear["classes"][0]["average_precision"] > 95 and linear["confusion"] is None
    assert "a,linear,map_low," in to_csv(probed)
    page = render(probed)
    assert "Average precision by linear" in page and "mAP" in page
    alone = to_markdown(probe(mean_color, data, root=tmp_path, progress=False))
    assert "| class | images | AP | precision | recall | F1 |" in alone
    with pytest.raises(UserError, match="low_shot requires one label per image"):
        probe(mean_color, data, ["linear", "low_shot"], root=tmp_path, progress=False)


def test_a_run_leaves_defaults_out_and_refuses_what_was_requested(folder, tmp_path):
    def check(*overrides):
        experiment = experiment_of(folder, tmp_path, *overrides)
        source = open_source(experiment.data)
        stores = open_stores(source, experiment.data, 16, tmp_path / "stores")
        return check_data(experiment, source, stores)

    found = check()
    assert found.classes.startswith("3 classes (training+test images): blue: ")
    assert [warning for warning in found.warnings if "low_shot (default) skipped" in warning]
    assert check("evaluate.low_shot=null").warnings == []
    with pytest.raises(UserError, match=r"evaluate\.low_shot: low_shot requires one label"):
        check("evaluate.low_shot={}")


def test_a_run_records_and_shows_mean_average_precision(folder, tmp_path):
    experiment = experiment_of(folder, tmp_path, "tracking.online_probe=true")
    run(experiment, tmp_path / "runs")
    metrics, *_ = [
        found["metrics"]
        for file in (tmp_path / "runs").rglob("run.json")
        if "probe/linear/map" in (found := json.loads(file.read_text()))["metrics"]
    ]
    assert {
        "probe/linear/map_low",
        "probe/knn/map_k20",
        "probe/linear/map_stderr",
    } <= metrics.keys()
    assert not [name for name in metrics if "top1" in name or "low_shot" in name]
    (page,) = (tmp_path / "runs").rglob("report.html")
    text = page.read_text()
    assert "Linear mAP (%)" in text and "top-1" not in text


def test_transfer_reads_no_label_of_its_own_images_and_refuses_several_elsewhere(folder, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    labels = np.random.default_rng(0).random((30, 3)) < 0.5
    own = LabeledImages(images, labels)
    for name, other in (("one", np.arange(30) % 2), ("several", labels)):
        np.savez(
            tmp_path / f"{name}.npz",
            train_images=images,
            train_labels=other,
            test_images=images,
            test_labels=other,
        )
    subject = Subject(mean_color, own, own, folder=tmp_path, progress=False)
    data = {"kind": "npz", "path": str(tmp_path / "one.npz")}
    assert Transfer(datasets=(data,), protocol="knn").run(subject)["top1"] >= 0
    data["path"] = str(tmp_path / "several.npz")
    with pytest.raises(UserError, match="data set 'several': images may have several labels"):
        Transfer(datasets=(data,)).run(subject)
