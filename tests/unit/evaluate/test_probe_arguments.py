import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.evaluate import knn
from ssdistill.evaluate.comparing.requested import ask
from ssdistill.evaluate.comparing.run import probe
from ssdistill.evaluate.opening.arguments import (
    check_image_size,
    check_margin,
    check_statistics,
)
from ssdistill.evaluate.opening.encoders import open_encoder
from ssdistill.evaluate.opening.images import open_images
from ssdistill.settings.registry import SOURCES

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 2
ARRAYS = ((IMAGES, LABELS), (IMAGES[:6], LABELS[:6]))


def flat(x_BCHW):
    return x_BCHW.flatten(1)


@pytest.mark.parametrize("size", [0, -4, 16.5, "16", 10**6, True, [16], (16, 0), (8, 8, 8)])
def test_a_size_that_no_image_has_is_refused_by_name(size):
    for call in (
        lambda: check_image_size(size),
        lambda: open_encoder(flat, image_size=size),
        lambda: knn(flat, ARRAYS, image_size=size),
        lambda: probe(flat, ARRAYS, ["knn"], image_size=size, progress=False),
    ):
        with pytest.raises(UserError, match=r"image_size=.*whole number from 1 to 8192"):
            call()


def test_sizes_of_numpy_are_sizes():
    assert check_image_size(np.int64(16)) == 16
    assert check_image_size(None) is None


def test_a_size_may_be_a_height_and_a_width():
    assert check_image_size([np.int64(32), 16]) == (32, 16)
    assert check_image_size((16, 16)) == 16


@pytest.mark.parametrize(
    "mean, std, words",
    [
        ([0.5], [1, 1, 1], r"mean has 1 numbers and std has 3"),
        ([0, 0, 0], [1, 1], "mean has 3 numbers and std has 2"),
        ([math.nan, 0, 0], [1, 1, 1], "mean=.*one finite number for each channel"),
        ([0, 0, 0], [1, 0, 1], "std=.*positive"),
        ([0, 0, 0], [1, -1, 1], "std=.*positive"),
        (0.5, 0.5, "mean=0.5: write one finite number"),
        ("abc", "abc", "mean='abc'"),
        ([0, 0, 0], None, "mean was passed without std"),
    ],
)
def test_statistics_that_normalize_nothing_are_refused(mean, std, words, tmp_path):
    with pytest.raises(UserError, match=words):
        check_statistics(mean, std)
    torch.save({}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=words):
        open_encoder(f"checkpoint:resnet18@{tmp_path / 'x.pth'}", mean=mean, std=std)


def test_statistics_may_be_arrays():
    check_statistics(np.zeros(3), torch.ones(3))


@pytest.mark.parametrize("margin", [0, -1, math.nan, math.inf, "1", None])
def test_a_margin_is_a_positive_number(margin):
    for call in (lambda: check_margin(margin), lambda: probe(flat, ARRAYS, ["knn"], margin=margin)):
        with pytest.raises(UserError, match=r"margin=.*positive, finite"):
            call()


@pytest.mark.parametrize(
    "what, words",
    [
        (b"digits", "data: expected a kind"),
        (torch.zeros(100), "data must be a non-empty array"),
        ([], "data: no images"),
        ({"kind": ["npz"]}, "unknown data source"),
        ("x" * 5000, "no such file or folder"),
        (((IMAGES.astype(int), LABELS),) * 2, r"whole numbers from 0 to 255 with x.astype"),
        (((IMAGES / 1.0, LABELS),) * 2, r"convert fractions"),
        ((([IMAGES[0], IMAGES[1][:4]], [0, 1]),) * 2, "no array|one array"),
    ],
)
def test_data_that_are_none_are_one_short_line(what, words):
    with pytest.raises(UserError, match=words) as raised:
        open_images(what)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 6000


def test_settings_of_a_source_are_not_ignored_beside_arrays():
    with pytest.raises(UserError, match=r"data_settings \(labels\) apply to a data source"):
        open_images(ARRAYS, {"labels": "none"})
    with pytest.raises(UserError, match=r"data_settings=.*expected a mapping"):
        open_images("digits", [1])


def test_a_class_is_not_an_encoder():
    with pytest.raises(UserError, match="pass an instance of it"):
        open_encoder(nn.Linear)


@pytest.mark.parametrize("names", ["linear", 3])
def test_protocols_are_a_list(names):
    with pytest.raises(UserError, match=r"protocols=.*expected a list of names"):
        ask(names)


def test_a_kind_that_is_no_text_is_unknown():
    with pytest.raises(UserError, match="unknown data source"):
        SOURCES[["npz"]]


@pytest.mark.parametrize("device", [[], 1.5])
def test_a_device_that_is_no_name_is_refused(device):
    with pytest.raises(UserError, match="device="):
        knn(flat, ARRAYS, device=device)


def test_a_result_is_compared_with_a_result():
    result = knn(flat, ARRAYS, k=3)
    with pytest.raises(UserError, match="cannot be compared with None: pass a Result"):
        result.paired(None)


@pytest.mark.parametrize(
    "encoder",
    [
        lambda x: torch.rand(3, 4),
        lambda x: torch.rand(1, 4),
        lambda x: torch.rand(len(x) + 1, 4),
        lambda x: x.flatten(1) + 0j,
        lambda x: x.flatten(1).to_sparse(),
        lambda x: x.flatten(1).to("meta"),
    ],
)
def test_an_encoder_that_answers_for_other_images_gets_no_number(encoder):
    with pytest.raises(UserError, match=r"the encoder gave .* for 12 images"):
        knn(encoder, ARRAYS, k=3)


def test_an_encoder_keeps_its_width_from_batch_to_batch():
    widths = iter((4, 1))
    images = np.repeat(IMAGES, 10, axis=0)  # two batches
    with pytest.raises(UserError, match=r"shape \(56, 1\) for 56 images.*\(56, 4\)"):
        knn(lambda x: x.flatten(1)[:, : next(widths)], ((images, np.arange(120) % 2),) * 2)


CHANGES = (lambda state: state.pop("bn1.weight"), lambda state: state.update(x=torch.ones(1)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_does_not_fit_is_refused_without_settings_that_are_not_there(tmp_path, change):
    state = timm.create_model("resnet10t").state_dict()
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="check the name 'resnet10t'") as raised:
        open_encoder(f"checkpoint:resnet10t@{tmp_path / 'x.pth'}")
    assert "teacher." not in str(raised.value)
