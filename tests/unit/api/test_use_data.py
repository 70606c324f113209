from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdistill.api.data import use_data
from ssdistill.data.named_images import OBJECTS
from ssdistill.errors import UserError

IMAGES_NHWC = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)


def given(*data, **options):
    """Training and test images that a section names."""
    section = use_data(*data, **options)
    assert section["kind"] == "object"
    return OBJECTS[section["name"]]


def test_a_path_or_kind_is_a_section_of_a_config(tmp_path):
    assert use_data("digits") == {"kind": "digits"}
    Image.fromarray(IMAGES_NHWC[0]).save(tmp_path / "a.png")
    folder = {"kind": "folder", "path": str(tmp_path)}
    assert use_data(tmp_path) == folder
    assert use_data(folder) == folder
    with pytest.raises(UserError, match="a source has its own test images"):
        use_data("digits", IMAGES_NHWC)


def test_tuples_have_labels_and_lists_have_images():
    train, test = given((IMAGES_NHWC, np.arange(6)))
    assert test is None and train.has_labels and len(train) == 6
    train, test = given(((IMAGES_NHWC[:4], [0, 1, 0, 1]), (IMAGES_NHWC[4:], [0, 1])))
    assert len(train) == 4 and len(test) == 2 and test.has_labels
    train, test = given(list(IMAGES_NHWC[:2]))
    assert len(train) == 2 and test is None and not train.has_labels
    train, test = given(IMAGES_NHWC[:4], IMAGES_NHWC[4:])
    assert len(test) == 2 and not test.has_labels


@pytest.mark.parametrize("kind", [list, np.array])
def test_paths_are_known_by_their_names(tmp_path, kind):
    paths = []
    for i, image in enumerate(IMAGES_NHWC):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    train, _ = given(kind(paths))
    assert Path(train.first).name == "0.png" and not train.is_array
    names = {use_data(kind(some))["name"] for some in (paths, paths, paths[:3])}
    assert len(names) == 2


def test_a_name_follows_from_the_content():
    first = use_data(IMAGES_NHWC)["name"]
    assert use_data(list(IMAGES_NHWC))["name"] != first
    assert use_data(IMAGES_NHWC.copy())["name"] == first
    assert use_data(IMAGES_NHWC, name="photos")["name"] == "photos"


def test_equal_images_with_other_labels_have_another_name():
    names = [
        use_data((IMAGES_NHWC, labels))["name"]
        for labels in (np.arange(6), np.arange(6) % 2, np.arange(6), list(range(6)))
    ]
    assert names[0] == names[2] == names[3] != names[1]
    assert use_data(IMAGES_NHWC)["name"] not in names
    assert OBJECTS[names[0]][0].labels[2] == 2 and OBJECTS[names[1]][0].labels[2] == 0


def test_labels_of_a_dataset_are_its_own():
    first, second = (Labeled(IMAGES_NHWC, [label] * 6) for label in (0, 1))
    names = [use_data(one)["name"] for one in (first, second, first)]
    assert names[0] == names[2] != names[1]


class Labeled:
    """A map-style dataset of (image, label)."""

    def __init__(self, images, labels):
        self.items = list(zip(images, labels, strict=True))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_two_datasets_are_to_train_and_to_test_on():
    train, test = given((Labeled(IMAGES_NHWC[:4], range(4)), Labeled(IMAGES_NHWC[4:], range(2))))
    assert (len(train), len(test)) == (4, 2) and test.has_labels


def test_paths_may_be_read_through_once(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    assert use_data(iter(paths)) == use_data(paths)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((IMAGES_NHWC[:3], IMAGES_NHWC[3:]), r"one label for each of the 3 images"),
        ((IMAGES_NHWC, np.arange(5)), "each of the 6 images, but has shape .5,"),
        ((IMAGES_NHWC, None), "one label for each"),
        (["a.png", None], "item 1 is no path, as the first is, but None"),
        (iter(IMAGES_NHWC), "read through only once"),
    ],
)
def test_what_is_no_images_and_labels_is_refused(data, said):
    with pytest.raises(UserError, match=said):
        use_data(data)
