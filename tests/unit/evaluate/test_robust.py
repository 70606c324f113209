import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.evaluate.corruptions import CORRUPTIONS, corrupt
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.evaluate.protocols.robust import Robust
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.label_free.features import extract
from ssdistill.models.representation import Representation
from ssdistill.settings.registry import PROTOCOLS

FEW = {"corruptions": ("impulse_noise", "snow", "fog"), "severities": (1, 3, 5)}


class Corners(nn.Module):
    """Mean colors of the four quarters of an image, and a buffer that a training would change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x_BCHW):
        return Representation(self.norm(nn.functional.adaptive_avg_pool2d(x_BCHW, 2).flatten(1)))


class Constant(nn.Module):
    def forward(self, x_BCHW):
        return Representation(torch.ones(len(x_BCHW), 5))


def split(count, seed):
    """Three classes, each with its own weak tint under strong noise; sorted by class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) * 3 // count
    tint = np.array([[40, 0, 0], [0, 40, 0], [0, 0, 40]])[labels]
    images = rng.integers(60, 140, (count, 1, 1, 3)) + tint[:, None, None]
    images = images + rng.integers(-40, 40, (count, 16, 16, 3))
    return LabeledImages(images.clip(0, 255).astype(np.uint8), labels)


def subject(encoder=None, tests=90, **facts):
    return Subject(encoder or Corners(), split(150, 0), split(tests, 1), progress=False, **facts)


def test_robust_is_the_clean_probe_asked_about_corrupted_images():
    judged = subject(batch_size=17)
    result = Robust(**FEW, images=40, seed=5).run(judged)
    rows = np.arange(40) * 90 // 40
    images, labels = judged.test.images[rows], judged.test.labels[rows]
    train_ND = extract(judged.encoder, judged.train.images, 16, progress=False)

    def accuracy(pictures):
        z_ND = extract(judged.encoder, pictures, 16, progress=False)
        return linear_probe(train_ND, judged.train.labels, z_ND, labels).top1

    expected = np.array(
        [
            [accuracy(corrupt(images, name, s, seed=5, index_N=rows)) for s in (1, 3, 5)]
            for name in FEW["corruptions"]
        ]
    )
    table = result.details["top1"]
    assert list(table) == list(FEW["corruptions"])
    assert [list(row.values()) for row in table.values()] == pytest.approx(expected)
    assert result["top1"] == pytest.approx(expected.mean())
    assert result["error"] == pytest.approx(100 - expected.mean())
    assert result["top1_clean"] == pytest.approx(accuracy(images))
    for s, severity in enumerate((1, 3, 5)):
        assert result[f"top1_s{severity}"] == pytest.approx(expected[:, s].mean())
    for c, name in enumerate(FEW["corruptions"]):
        assert result[name] == pytest.approx(expected[c].mean())
    # The toy must tell corruptions apart, or it proves nothing.
    assert len(np.unique(expected)) > 3 and result["top1_clean"] > expected.min() + 5


def test_the_standard_error_is_that_of_pictures_not_of_their_versions():
    result = Robust(**FEW).run(subject())
    share_N = result.arrays["hit_CSN"].mean((0, 1))
    assert result.arrays["hit_CSN"].shape == (3, 3, 90)
    assert result["top1_stderr"] == pytest.approx(100 * share_N.std() / 90**0.5)
    assert result["top1"] == pytest.approx(100 * share_N.mean())


def test_all_fifteen_and_five_by_default_and_every_measure_has_a_name():
    result = Robust(images=6).run(subject(tests=12))
    names = {name.removeprefix("probe/robust/") for name in result.metrics}
    assert names == {
        *("top1", "top1_stderr", "top1_clean", "error"),
        *(f"top1_s{severity}" for severity in range(1, 6)),
        *CORRUPTIONS,
    }
    assert all(len(row) == 5 for row in result.details["top1"].values())
    assert result.details["images"] == 6


def test_an_encoder_of_constants_is_as_good_on_corrupted_images():
    result = Robust(**FEW).run(subject(Constant()))
    assert result["top1"] == result["top1_clean"] == result["snow"]
    assert result["top1_clean"] == pytest.approx(100 / 3)


def test_the_images_are_evenly_spread_over_a_sorted_test_set():
    result = Robust(**FEW, images=9).run(subject(Constant()))
    assert result["top1_clean"] == pytest.approx(100 / 3)


def test_batches_and_repetitions_do_not_matter_and_the_seed_does():
    runs = [
        Robust(**FEW, seed=seed).run(subject(batch_size=size))
        for seed, size in ((0, 512), (0, 7), (1, 512))
    ]
    hits = [run.arrays["hit_CSN"] for run in runs]
    assert np.array_equal(hits[0], hits[1])
    assert not np.array_equal(hits[0], hits[2])


def test_the_encoder_and_the_generators_are_left_as_they_were():
    encoder = Corners().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    drawn = torch.get_rng_state()
    judged = subject(encoder)
    images = judged.test.images.copy()
    Robust(**FEW).run(judged)
    assert encoder.training and encoder.norm.training
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert np.array_equal(judged.test.images, images)


def test_a_config_asks_for_it_and_a_slip_is_found_there():
    settings = EvaluateSettings.model_validate({"robust": {"severities": [5], "images": 10}})
    (built,) = [p for p in settings.protocols if p.kind == "robust"]
    assert (built.severities, built.images, built.corruptions) == ((5,), 10, tuple(CORRUPTIONS))
    assert EvaluateSettings().robust is None
    schema = PROTOCOLS.schema("robust")
    for wrong in ({"severities": [0]}, {"corruptions": ["rain"]}, {"severities": []}):
        with pytest.raises(ValueError, match=r"severities|corruptions"):
            schema.model_validate(wrong)


@pytest.mark.parametrize(
    "wrong", [{"severities": (1, 1)}, {"corruptions": ()}, {"corruptions": ("fog", "fog")}]
)
def test_nothing_and_twice_are_refused(wrong):
    with pytest.raises(
        UserError, match=rf"robust.{next(iter(wrong))}: must be non-empty, without duplicates"
    ):
        Robust(**wrong)


def test_test_images_without_labels_are_refused():
    judged = subject()
    judged.splits["test"] = LabeledImages(judged.test.images, None)
    with pytest.raises(UserError, match="test labels are missing"):
        Robust(**FEW).run(judged)
