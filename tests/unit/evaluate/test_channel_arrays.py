"""Images that are given as arrays, of any number of channels."""

import numpy as np
import pytest

from ssdistill.errors import UserError
from ssdistill.evaluate.opening.images import open_images
from ssdistill.evaluate.subject import Subject

RNG = np.random.default_rng(0)
LABELS = np.arange(12) % 2


def pairs(images):
    return ((images, LABELS), (images, LABELS))


def test_fractions_of_five_channels_are_images():
    images = RNG.random((12, 32, 16, 5), dtype=np.float32)
    shown = open_images(pairs(images))
    assert shown.train.images is images and shown.image_size == (32, 16)
    assert np.allclose(shown.facts.mean, images.mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(shown.facts.std, images.std((0, 1, 2)), atol=1e-5)


def test_bytes_are_scaled_in_the_statistics():
    images = RNG.integers(0, 256, (12, 8, 8, 2), dtype=np.uint8)
    shown = open_images(pairs(images))
    assert shown.image_size == 8
    assert np.allclose(shown.facts.mean, images.mean((0, 1, 2)) / 255)


@pytest.mark.parametrize(("images", "remedy"), [
    (np.zeros((12, 5, 32, 16), np.float32), "put the channels last with x.transpose(0, 2, 3, 1)"),
    (np.zeros((12, 4, 32, 32), np.uint8), "put the channels last with x.transpose(0, 2, 3, 1)"),
    (np.full((12, 8, 8, 5), 1.5, np.float32), "convert fractions"),
    (np.full((12, 8, 8, 5), np.nan, np.float32), "convert fractions"),
    (np.full((12, 8, 8, 5), 255.0), "convert fractions"),
    (np.zeros((12, 8), np.uint8), "pass images of one size in one array"),
])  # fmt: skip
def test_arrays_that_are_no_images_are_refused_with_a_remedy(images, remedy):
    with pytest.raises(UserError) as caught:
        open_images(pairs(images))
    assert remedy in str(caught.value) and "\n" not in str(caught.value)


def test_a_subject_has_the_size_of_its_images():
    shown = open_images(pairs(RNG.integers(0, 256, (12, 32, 16, 3), dtype=np.uint8)))
    assert Subject(lambda x: x, shown.train, shown.test).image_size == (32, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_may_be_as_tensors_are(channels):
    images = RNG.integers(0, 256, (12, 8, 6, channels), dtype=np.uint8)
    shown = open_images(pairs(images.transpose(0, 3, 1, 2)))
    assert np.array_equal(shown.train.images, images) and shown.image_size == (8, 6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_fractions_of_other_types_are_converted(dtype):
    images = RNG.random((12, 8, 8, 3)).astype(dtype)
    shown = open_images(pairs(images))
    assert shown.train.images.dtype == np.float32
    assert np.array_equal(shown.train.images, images.astype(np.float32))
