"""Properties of all fifteen corruptions."""

import numpy as np
import pytest
import torch
from slow_waves import plain, smooth

from ssdistill.errors import UserError
from ssdistill.evaluate import corruptions
from ssdistill.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt

PAPER = [
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
]
DRAWN = {*PAPER[:3], "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"}


def change(images, name, severity):
    return np.abs(corrupt(images, name, severity).astype(int) - images).mean()


def test_the_papers_fifteen_are_there_in_its_order():
    assert list(CORRUPTIONS) == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_each_severity_changes_pictures_more_than_the_one_before(name):
    found = [change(smooth(48), name, severity) for severity in SEVERITIES]
    assert (np.diff(found) > 0).all(), found
    assert found[0] > 0.1


@pytest.mark.parametrize("name", PAPER)
def test_a_picture_is_the_same_in_any_batch_and_order(name, monkeypatch):
    images = smooth(37)
    before = images.copy()
    together = corrupt(images, name, 4, seed=3)
    assert np.array_equal(images, before)
    assert (together.dtype, together.shape) == (np.uint8, images.shape)
    order = np.random.default_rng(0).permutation(37)
    shuffled = corrupt(images[order], name, 4, seed=3, index_N=order)
    assert np.array_equal(shuffled, together[order])
    for i in (0, 5, 36):
        alone = corrupt(images[i : i + 1], name, 4, seed=3, index_N=[i])
        assert np.array_equal(alone[0], together[i])
    monkeypatch.setattr(corruptions, "CHUNK", 5 * 32 * 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        in_fives = corrupt(torch.from_numpy(images), name, 4, seed=3)
    finally:
        torch.set_num_threads(threads)
    assert isinstance(in_fives, torch.Tensor)
    assert np.array_equal(in_fives.numpy(), together)


@pytest.mark.parametrize("name", PAPER)
def test_what_is_drawn_follows_seed_and_position_and_no_global_state(name):
    images = np.repeat(smooth(1), 2, axis=0)
    state = torch.get_rng_state()
    first, again, other = (corrupt(images, name, 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first, again)
    assert (not np.array_equal(first, other)) == (name in DRAWN)
    assert (not np.array_equal(first[0], first[1])) == (name in DRAWN)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("shape", [(8, 8), (33, 20), (64, 64)])
def test_other_sizes_are_served(name, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    assert corrupt(images, name, 5).shape == images.shape


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3"])
def test_a_severity_that_is_none_is_refused(severity):
    with pytest.raises(UserError, match=r"severity=.* of 'snow': must be 1, 2, 3, 4 or 5"):
        corrupt(plain(0), "snow", severity)


@pytest.mark.parametrize(
    ("images", "name", "positions", "message"),
    [
        (plain(0), "snoww", None, r"'snoww' \(did you mean 'snow'\?\); known: gaussian_noise"),
        (plain(0).astype(float), "snow", None, "require uint8 .* got float64"),
        (plain(0, side=7), "snow", None, "at least 8 pixels a side"),
        (plain(0)[..., :1], "snow", None, r"got uint8 \(16, 32, 32, 1\)"),
        (plain(0), "snow", [1, 2], "2 positions for 16 images"),
    ],
)
def test_what_cannot_be_corrupted_is_named(images, name, positions, message):
    with pytest.raises(UserError, match=message) as caught:
        corrupt(images, name, 1, index_N=positions)
    assert "\n" not in str(caught.value)
