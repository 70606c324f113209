"""Protocols as functions: their images, names and requested settings."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

import ssdistill.evaluate
from ssdistill.commands.probe.arguments import parse_words
from ssdistill.errors import UserError
from ssdistill.evaluate.comparing.requested import ask
from ssdistill.evaluate.comparing.short_names import short_names
from ssdistill.evaluate.functions import as_device, open_subject
from ssdistill.evaluate.opening.images import open_images
from ssdistill.evaluate.protocols.linear import Linear
from ssdistill.evaluate.result import Result
from ssdistill.evaluate.subject import Subject
from ssdistill.settings.registry import PROTOCOLS


def flat(x_BCHW):
    return x_BCHW.flatten(1)


def pairs(train=60, test=30, classes=3, side=6):
    """Noise over a brightness that tells the class."""
    rng = np.random.default_rng(0)

    def split(count):
        y = np.arange(count) % classes
        level = (y * 200 // classes).reshape(-1, 1, 1, 1)
        return (rng.integers(0, 90, (count, side, side, 3)) + level // 2).astype(np.uint8), y

    return split(train), split(test)


@pytest.mark.parametrize("kind", sorted(PROTOCOLS.classes))
def test_every_protocol_is_a_function(kind):
    function = getattr(ssdistill.evaluate, kind)
    assert callable(function) and function.__name__ == kind
    assert kind in dir(ssdistill.evaluate)
    names = list(inspect.signature(function).parameters)
    own = [n for n in inspect.signature(PROTOCOLS[kind].__init__).parameters if n != "self"]
    assert names[:2] == ["encoder", "data"] and set(own) <= set(names)
    assert function.__doc__.startswith(inspect.getdoc(PROTOCOLS[kind]).splitlines()[0])


def test_a_function_gives_what_the_protocol_gives():
    (train, test) = data = pairs()
    found = ssdistill.evaluate.linear(flat, data, strengths=(0.1, 1.0), holdout=0.2)
    assert isinstance(found, Result) and found.settings["holdout"] == 0.2
    subject = open_subject(flat, data)
    expected = Linear(strengths=(0.1, 1.0), holdout=0.2).run(subject)
    assert found.metrics == expected.metrics and found["top1"] > 90
    assert (
        ssdistill.evaluate.linear(subject, strengths=(0.1, 1.0), holdout=0.2)["top1"]
        == (found["top1"])
    )
    assert len(subject.features("train")) == len(train[0]) and len(test[0]) == 30


def test_a_name_that_is_no_protocol_gets_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'linear'"):
        _ = ssdistill.evaluate.linaer
    with pytest.raises(AttributeError):
        _ = ssdistill.evaluate.__wrapped__


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"holdut": 0.2}, "linear has no setting 'holdut' (did you mean 'holdout'?)"),
        ({"holdout": 2}, "linear.holdout: expected a number below 1"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"device": "cudda"}, "device=cudda: use auto, cpu"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        ssdistill.evaluate.linear(flat, pairs(), **settings)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_pictures_come_from_arrays_files_and_folders(tmp_path):
    (x, y), (u, v) = data = pairs()
    shown = open_images(data)
    assert shown.labeled and shown.image_size == 6 and np.array_equal(shown.train.images, x)
    mean = (x / 255).mean((0, 1, 2))
    assert np.allclose(shown.facts.mean, mean) and shown.facts.image_size == 6
    gray = open_images(((x[..., 0], y), (u[..., 0], v)))
    assert gray.train.images.shape == x.shape
    assert not open_images(((x,), (u, v))).labeled

    path, runs = tmp_path / "some.npz", tmp_path / "runs"
    np.savez(path, train_images=x, test_images=u, train_labels=y, test_labels=v)
    for named in (path, {"kind": "npz", "path": str(path)}):
        found = open_images(named, root=runs)
        assert found.labeled and np.array_equal(found.test.labels, v)
    assert open_images("npz", {"path": str(path), "image_size": 4}, root=runs).image_size == 4

    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            picture = Image.fromarray(x[number]).resize((40, 30))
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    sizes = [20, 12]
    assert open_images(tmp_path / "photos", sizes=sizes, root=runs).image_size == 20
    assert open_images(tmp_path / "photos", root=runs).image_size == 64
    given = open_images(tmp_path / "photos", {"image_size": 8}, sizes=sizes, root=runs)
    assert given.image_size == 8 and given.labeled and given.test.class_names == ("a", "b")


class Labeled:
    """A map-style dataset of (image, label)."""

    def __init__(self, images, labels):
        self.items = list(zip(images, labels, strict=True))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_what_a_program_holds_is_evaluated_as_arrays_are(tmp_path):
    (x, y), (u, v) = pairs()
    expected = open_images(((x, y), (u, v)))
    for data in ((Labeled(x, y), Labeled(u, v)), ((list(x), y), (list(u), v))):
        found = open_images(data, root=tmp_path)
        for name in ("train", "test"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert np.array_equal(ours.images, theirs.images)
            assert np.array_equal(ours.labels, theirs.labels)
    held_out = open_images((x, y), root=tmp_path)
    assert held_out.labeled and len(held_out.train) + len(held_out.test) == len(x)
    assert len(open_images(Labeled(x, y), {"test_fraction": 0.5}, root=tmp_path).test) > len(
        held_out.test
    )


@pytest.mark.parametrize(
    "data, words",
    [
        ("digts", "did you mean 'digits'"),
        ("no.npz", "data.path=no.npz"),
        ({"kind": "npz", "pth": "x"}, "data.pth: no such setting (did you mean 'path'?)"),
        ({"kind": "nzp"}, "unknown data source 'nzp' (did you mean 'npz'?)"),
        (3, "data: expected a kind, a path, settings, arrays or a dataset, got 3"),
        ((1, 2, 3), "data: an item is no image (int"),
        (((np.full((2, 4, 4, 3), 2.0),),) * 2, "training images must be non-empty uint8"),
    ],
)
def test_pictures_that_are_none_are_refused_in_one_line(data, words):
    with pytest.raises(UserError) as error:
        open_images(data)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_subject_is_given_alone_and_lends_its_pictures():
    subject = open_subject(flat, pairs())
    assert open_subject(subject) is subject
    other = open_subject(lambda x: x.mean((2, 3)), subject)
    assert isinstance(other, Subject) and other.train is subject.train
    with pytest.raises(UserError, match="omit data"):
        open_subject(subject, "digits")
    with pytest.raises(UserError, match="data: required"):
        open_subject(flat)


def test_auto_is_a_gpu_where_there_is_one():
    assert as_device("auto") == (torch.device("cuda") if torch.cuda.is_available() else None)
    assert as_device(None) is None and as_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "paths, names",
    [
        (["runs/x/s0/model"], ["x"]),
        (["runs/a-1a2b3c4d/s0", "runs/b-1a2b3c4d/s0"], ["a", "b"]),
        (["a-11111111/s0", "a-22222222/s0"], ["a-11111111", "a-22222222"]),
        (["a/s0/model", "a/s1/model"], ["s0/model", "s1/model"]),
        (["x/best", "y/best"], ["x/best", "y/best"]),
        (["out/enc.onnx", "timm:resnet18@w.pth", "timm:vit_tiny"], ["enc", "resnet18", "vit_tiny"]),
        (["timm:resnet18@a.pth", "timm:resnet18@b.pth"], ["a.pth", "b.pth"]),
        (["model"], ["model"]),
    ],
)
def test_names_are_short_and_differ(paths, names):
    assert short_names(paths) == names


def test_a_model_of_a_run_is_called_as_in_the_run(tmp_path):
    for folder, role in (("distill-1a2b3c4d", "distilled"), ("pretrain-1a2b3c4d", "teacher")):
        (tmp_path / folder / "s0" / "model").mkdir(parents=True)
        (tmp_path / folder / "s0" / "run.json").write_text(f'{{"kind": "{role}"}}')
    paths = [str(tmp_path / "distill-1a2b3c4d/s0"), str(tmp_path / "pretrain-1a2b3c4d/s0/model")]
    assert short_names(paths) == ["distilled", "teacher"]
    with pytest.raises(UserError, match="is listed twice"):
        short_names([paths[0]] * 2)


def test_protocols_are_asked_by_name_with_their_settings():
    default = ask(None)
    assert [protocol.name for protocol in default][:3] == ["linear", "knn", "low_shot"]
    settings = parse_words(["knn.k=3", "linear.strengths=[0.1, 1]", "data.path=x.npz"])
    assert settings.pop("data") == {"path": "x.npz"}
    linear, knn = ask(["knn", "linear"], settings)
    assert knn.k == 3 and tuple(linear.strengths) == (0.1, 1.0)
    for kind, cls in PROTOCOLS.classes.items():
        for preset in cls.presets:
            (protocol,) = ask([f"{kind}_{preset}"])
            assert (protocol.kind, protocol.preset) == (kind, preset)


@pytest.mark.parametrize(
    "names, words, message",
    [
        (["lnear"], [], "unknown protocol 'lnear' (did you mean 'linear'?)"),
        (["knn", "knn"], [], "listed twice"),
        (
            ["knn"],
            ["linear.seed=1"],
            "linear.seed: linear is not one of the requested protocols knn",
        ),
        (["knn"], ["knm.k=1"], "unknown protocol 'knm' (did you mean 'knn'?)"),
        (["knn"], ["knn.kk=1"], "knn.kk: no such setting (did you mean 'k'?)"),
        (["knn"], ["knn=1"], "expected data.key=value or protocol.key=value"),
        ([], [], "no protocol requested"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(names, words, message):
    with pytest.raises(UserError) as error:
        ask(names, parse_words(words))
    assert message in str(error.value) and "\n" not in str(error.value)
