"""Labels are checked, whatever their source."""

import numpy as np
import pytest

from ssdistill.data.array_split import ArraySplit
from ssdistill.data.labels import class_labels
from ssdistill.errors import UserError
from ssdistill.evaluate.labels import look_at_labels
from ssdistill.evaluate.opening.images import open_images
from ssdistill.evaluate.subject import LabeledImages


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 2],
        np.array([[0], [1], [2]], np.uint8),
        np.array([0.0, 1.0, 2.0], np.float32),
        np.array([0, 1, 2], ">i4"),
        np.array([0, 1, 2], np.uint64),
    ],
)
def test_whole_numbers_of_any_type_are_labels(labels):
    values = class_labels(labels, "labels", 3)
    assert values.dtype == np.int64 and values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_zeros_and_ones_of_each_class_are_several_labels(dtype):
    several = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]])
    values = class_labels(several.astype(dtype), "labels", 4)
    assert values.dtype == bool and (values == several).all()


def test_truth_values_are_two_classes():
    assert class_labels(np.array([True, False]), "labels", 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((4, 2, 2)), "or 0 or 1 for each class, but they are float64 of shape 4 x 2 x 2"),
        (np.zeros((3, 2)), "each of the 4 images"),
        (np.zeros((4, 0)), "0 or 1 for each class where there are several per image"),
        (np.full((4, 3), 0.3), "12 are neither (first: 0.3 of image 0, class 0)"),
        (np.diag([1, np.nan, 1, 1]), "1 are neither (first: nan of image 1, class 1)"),
        (np.diag([1, 1, 1, -1]), "1 are neither (first: -1 of image 3, class 3)"),
        (np.array([["a", "b"]] * 4), "0 or 1 for each class"),
        (np.array([0, 1, np.nan, np.nan]), "2 of 4 are NaN or infinite (first: nan of image 2"),
        (np.array([0, 1, np.inf, 1]), "NaN or infinite"),
        (np.array([0, 1.5, 2, 3]), "1 of 4 are fractions (first: 1.5 of image 1"),
        (np.array([0, -1, -1, 1]), "2 of 4 are negative"),
        (np.full(4, -1), "often means unlabeled"),
        (np.array(["a", "b", "a", "b"]), "number the classes from 0"),
        (np.array([b"a", b"b", b"a", b"b"]), "number the classes from 0"),
        (np.array([None] * 4), "they are object"),
        (np.array([1j] * 4), "complex"),
        (np.array([2**63] * 4, np.uint64), "below 2**63"),
        (np.zeros(3), "each of the 4 images"),
        (np.array(3), "each of the 4 images"),
        ([], "each of the 4 images"),
    ],
)
def test_what_is_no_label_is_refused_in_one_line_with_the_way_out(labels, words):
    with pytest.raises(UserError) as caught:
        class_labels(labels, "'train_labels'", 4)
    message = str(caught.value)
    assert words in message and "'train_labels'" in message and "\n" not in message
    assert "data.labels=none" in message


def test_labels_of_arrays_and_libraries_pass_the_same_gate():
    """torchvision's sets are such splits too."""
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    split = ArraySplit("svhn train", "x", lambda: pixels, lambda: np.full((2, 2), 2))
    with pytest.raises(UserError, match=r"svhn train: its labels .* 4 are neither"):
        split.labels()


def pairs(train, test):
    images = np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3)
    return (images[: len(train)], train), (images[: len(test)], test)


@pytest.mark.parametrize(
    "labels", [2 * np.eye(3), [-1, 0, 1], ["a", "b", "c"], [0, 1], [0.5, 1, 2]]
)
def test_arrays_given_in_memory_are_looked_at_too(labels):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match=r"data: training labels .*omit them: \(x,\) alone"):
        open_images(((images, labels), (images, [0, 1, 2])))


def test_fractional_whole_numbers_in_memory_become_classes():
    shown = open_images(pairs(np.array([0.0, 1.0, 1.0]), np.array([1.0])))
    assert shown.train.labels.tolist() == [0, 1, 1] and shown.labeled


def test_a_probes_data_is_refused_before_anything_is_encoded(tmp_path):
    images = np.arange(4 * 48, dtype=np.uint8).reshape(4, 4, 4, 3)
    arrays = {"train_images": images, "test_images": images}
    np.savez(tmp_path / "a.npz", **arrays, train_labels=np.eye(4), test_labels=np.eye(4))
    with pytest.raises(UserError, match=r"one-hot.* store labels\.argmax\(axis=1\) instead"):
        open_images(tmp_path / "a.npz", root=tmp_path)
    assert not open_images(tmp_path / "a.npz", {"labels": "none"}, root=tmp_path).labeled


def images_of(labels, names=None):
    return LabeledImages(np.zeros((len(labels), 4, 4, 3)), np.array(labels), names)


def test_few_classes_are_named_with_both_counts_and_many_in_short():
    line = look_at_labels(images_of([0, 1, 1], ("cat", "dog")), images_of([1, 1]))
    assert line == "2 classes (training+test images): cat: 1+0, dog: 2+2"
    many = look_at_labels(images_of([*range(40), 0]), images_of(range(40)))
    assert many == "40 classes of 1 to 2 training and 1 test images: 0, 1, 2, 3, 4, …"


def test_one_class_and_test_classes_unknown_to_training_are_refused():
    with pytest.raises(UserError, match=r"a single class \(cat\), but a probe requires two"):
        look_at_labels(images_of([0, 0], ("cat",)), images_of([0]))
    names = ("cat", "dog", "emu")
    with pytest.raises(UserError, match=r"classes without training images \(emu\)"):
        look_at_labels(images_of([0, 1], names), images_of([2, 0], names))
