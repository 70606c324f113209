"""What is reported about the images before anything is trained."""

import numpy as np
import pytest
from PIL import Image

from ssdistill.chain import run as run_module
from ssdistill.chain.data_checks import check_data
from ssdistill.chain.run import dry_run
from ssdistill.data.opening import open_source, open_stores
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment

TINY = """
schema: 1
name: tiny
data: {kind: folder, path: DATA, image_size: 16}
teacher: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 2, batch_size: 2}
"""


def random_image(number=0):
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def put(folder, names, pixels=random_image):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / name)


@pytest.fixture
def experiment_of(tmp_path):
    def make(*overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY.replace("DATA", str(tmp_path / "set")))
        return load_experiment(path, list(overrides))[0]

    return make


@pytest.fixture
def check(tmp_path, experiment_of):
    def check(*overrides):
        experiment = experiment_of(*overrides)
        source = open_source(experiment.data)
        stores = open_stores(source, experiment.data, 16, tmp_path / "stores")
        return check_data(experiment, source, stores)

    return check


def test_ordinary_pictures_have_classes_and_no_warning(tmp_path, check):
    put(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    findings = check()
    assert findings.classes == "2 classes (training+test images): a: 16+4, b: 16+4"
    assert findings.warnings == [] and findings.source.has_labels
    assert check("evaluate=null").classes is None
    assert check("data.labels=none").classes is None


def test_black_pictures_are_refused_for_what_they_are(tmp_path, check):
    put(tmp_path / "set", [f"{i}.png" for i in range(24)], lambda _: random_image() * 0 + 7)
    with pytest.raises(UserError, match="every pixel of the 22 training images has the value 7"):
        check()


def test_equal_pictures_are_refused_for_what_they_are(tmp_path, check):
    put(tmp_path / "set", [f"{i}.png" for i in range(24)], lambda _: random_image(0))
    with pytest.raises(UserError, match="the 22 training images are identical"):
        check()


def test_pictures_that_are_alike_in_a_sample_only_pass(tmp_path, check):
    put(tmp_path / "set", [f"{i:03d}.png" for i in range(140)], lambda i: random_image(int(i == 2)))
    check("data.test_fraction=0")


def test_pictures_of_one_color_each_are_warned_of(tmp_path, check):
    put(
        tmp_path / "set",
        [f"{i}.png" for i in range(50)],
        lambda i: random_image() * 0 + np.uint8(5 * i),
    )
    (warning,) = check().warnings
    assert "has a single color" in warning


def test_a_channel_of_one_value_can_be_divided_by_its_std(tmp_path, experiment_of):
    """Green fluorescence: red and blue are 0 everywhere, and 0 / 0 was blamed on optim.lr."""
    green = np.array([0, 1, 0], np.uint8)
    put(tmp_path / "set", [f"{i}.png" for i in range(24)], lambda i: random_image(i) * green)
    experiment = experiment_of()
    stores = open_stores(open_source(experiment.data), experiment.data, 16, tmp_path / "stores")
    assert stores["train"].std[0] == stores["train"].std[2] == 1 / 255
    assert stores["train"].std[1] > 0.2


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (2, ["no test images", "2 test images: too few for agree/* (requires 4)"]),
        (3, ["1 test image: too few for collapse/* (requires 2) and agree/* (requires 4)"]),
        (
            24,
            ["2 test images: too few for agree/* (requires 4), which are skipped; raise data."],
        ),
        (40, []),
    ],
)
def test_few_pictures_are_said_with_the_key(tmp_path, check, count, words):
    put(tmp_path / "set", [f"{i}.png" for i in range(count)])
    warnings = check().warnings
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_one_picture_is_one_clear_line(tmp_path, check):
    put(tmp_path / "set", ["0.png"])
    with pytest.raises(UserError, match="1 training image, but training requires at least 2"):
        check()


def test_no_test_fraction_looks_at_the_training_pictures(tmp_path, check):
    put(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    findings = check("data.test_fraction=0")
    (warning,) = findings.warnings
    assert "use the training images; no probe is run; to get test images, raise data.test_fr" in (
        warning
    )
    assert not findings.source.has_labels


def test_one_class_is_warned_of_and_not_probed(tmp_path, check):
    put(tmp_path / "set", [f"only/{i}.png" for i in range(24)])
    findings = check()
    assert findings.warnings[0].startswith("one class only (only)")
    assert not findings.source.has_labels and findings.classes is None


def test_too_few_pictures_for_compression_are_said(tmp_path, check):
    put(tmp_path / "set", [f"{i}.png" for i in range(10)])
    warnings = check("compress=[{kind: quantize}]", "data.test_fraction=0.4").warnings
    assert ["6 training images: too few for compress" in w for w in warnings] == [True]


def test_a_dry_run_says_it_too(tmp_path, experiment_of, monkeypatch):
    put(tmp_path / "set", [f"{i}.png" for i in range(24)])
    lines = []
    monkeypatch.setattr(run_module.console, "print", lambda text, **_: lines.append(text))
    dry_run(experiment_of(), tmp_path / "runs")
    assert lines[0].endswith("22 training and 2 test images, 16x16")
    assert lines[2].startswith("warning: 2 test images: too few")


def test_classes_and_what_auto_chose_are_printed_before_anything_starts(
    tmp_path, experiment_of, monkeypatch
):
    put(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    lines = []
    monkeypatch.setattr(run_module.console, "print", lambda text, **_: lines.append(text))

    def begin(*_):
        raise InterruptedError

    monkeypatch.setattr(run_module, "_run_stages", begin)
    with pytest.raises(InterruptedError):
        run_module.run(experiment_of("tracking.wandb=disabled"), tmp_path / "runs")
    assert lines[1] == "2 classes (training+test images): a: 16+4, b: 16+4"
    assert any("stem=auto gives resnet10t" in line for line in lines)


def test_labels_are_refused_by_a_dry_run(tmp_path, experiment_of):
    put(tmp_path / "set", ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"])
    experiment = experiment_of()
    assert dry_run(experiment, tmp_path / "runs")  # labels wait until the images are decoded
    open_stores(open_source(experiment.data), experiment.data, 16, tmp_path / "runs" / "data")
    with pytest.raises(UserError, match=r"test labels have classes .*\(c\).*data\.labels=none"):
        dry_run(experiment, tmp_path / "runs")
    assert dry_run(experiment_of("data.labels=none"), tmp_path / "runs")


def test_every_batch_that_is_too_large_is_named_at_once(tmp_path, experiment_of):
    put(tmp_path / "set", [f"{i}.png" for i in range(10)])
    overrides = "compress=[{kind: recover, steps: 1, batch_size: 32}]", "pretrain.batch_size=64"
    with pytest.raises(UserError) as caught:
        dry_run(experiment_of(*overrides), tmp_path / "runs")
    message = str(caught.value)
    assert "pretrain.batch_size=64" in message and "compress.0.batch_size=32" in message
    assert "9 training images; set at most 9" in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("evaluate.knn.k=33", "evaluate.knn: knn: k=33 neighbors of 32 training images"),
        ("evaluate.also.b={kind: knn, preset: lightly, ks: [99]}", "evaluate.also.b: .*ks=99"),
    ],
)
def test_more_neighbors_than_training_images_are_refused_before_training(
    tmp_path, check, override, key
):
    put(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    with pytest.raises(UserError, match=key):
        check(override)
    check("evaluate.knn.k=32")
    check("evaluate.knn.preset=lightly")  # 200 of its own accord: as many as there are
    check("evaluate=null")
