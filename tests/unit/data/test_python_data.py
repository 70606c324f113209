import numpy as np
import pytest
import torch
from PIL import Image

from ssdistill.data.items import pixels_of
from ssdistill.data.named_images import name_images
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.python_data import ProgramImages
from ssdistill.data.sources.object import PythonObject
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

RANDOM = np.random.default_rng(0)
IMAGES_NHWC = RANDOM.integers(0, 256, (30, 8, 10, 3)).astype(np.uint8)
LABELS_N = np.arange(30) % 3


class Pairs:
    """A map-style dataset."""

    def __init__(self, item, count=30):
        self.item, self.count = item, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.item(i)


def opened(images, tmp_path, labels=None, test=None, **settings):
    name_images("mine", ProgramImages(images, labels), test and ProgramImages(*test))
    chosen = SOURCES.schema("object")(name="mine", test_fraction=0.2, **settings)
    source = open_source(chosen)
    return source, open_stores(source, chosen, (8, 10), tmp_path)


def stored(stores):
    """All images of both stores, in the order of their bytes."""
    both = np.concatenate([np.asarray(stores[name].images) for name in ("train", "test")])
    return sorted(image.tobytes() for image in both)


AS_GIVEN = sorted(image.tobytes() for image in IMAGES_NHWC)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES_NHWC,
        torch.from_numpy(IMAGES_NHWC),
        torch.from_numpy(IMAGES_NHWC).permute(0, 3, 1, 2),
        Pairs(lambda i: Image.fromarray(IMAGES_NHWC[i])),
        Pairs(lambda i: (Image.fromarray(IMAGES_NHWC[i]), int(LABELS_N[i]))),
        Pairs(lambda i: {"image": IMAGES_NHWC[i], "label": 1}),
        Pairs(lambda i: torch.from_numpy(IMAGES_NHWC[i]).permute(2, 0, 1)),
        list(IMAGES_NHWC),
    ],
    ids=["NHWC", "tensor", "NCHW", "PIL", "pairs", "dicts", "CHW tensors", "list of arrays"],
)
def test_images_are_those_that_were_given(images, tmp_path):
    _, stores = opened(images, tmp_path)
    assert len(stores["train"]) == 24 and len(stores["test"]) == 6
    assert stored(stores) == AS_GIVEN
    assert not stores["train"].bad


def test_paths_are_read_as_files(tmp_path):
    paths = []
    for i, image in enumerate(IMAGES_NHWC):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    source, stores = opened(paths, tmp_path / "data", LABELS_N)
    assert stored(stores) == AS_GIVEN and source.has_labels
    rows = [int(path.stem) for path in map(source.split("test").path, range(6))]
    assert stores["test"].labels.tolist() == LABELS_N[rows].tolist()
    assert source.split("train").encoded() is not None  # views are cut from the files


def test_labels_of_arrays_and_of_datasets(tmp_path):
    pairs = Pairs(lambda i: (IMAGES_NHWC[i], LABELS_N[i]))
    for images, labels in ((IMAGES_NHWC, LABELS_N), (pairs, None), (pairs, LABELS_N)):
        source, stores = opened(images, tmp_path, labels)
        assert source.has_labels
        found = dict(
            zip(map(bytes, np.asarray(stores["train"].images)), stores["train"].labels, strict=True)
        )
        expected = dict(zip(map(bytes, IMAGES_NHWC), LABELS_N, strict=True))
        assert all(expected[image] == label for image, label in found.items())
    assert not opened(IMAGES_NHWC, tmp_path)[0].has_labels


def test_test_images_of_their_own(tmp_path):
    _, stores = opened(IMAGES_NHWC[:20], tmp_path, test=(IMAGES_NHWC[20:],))
    assert len(stores["train"]) == 20
    assert np.array_equal(stores["test"].images, IMAGES_NHWC[20:])


def test_content_and_not_the_name_is_the_identity(tmp_path):
    first = ProgramImages(IMAGES_NHWC).identity
    assert ProgramImages(IMAGES_NHWC.copy(), name="other").identity == first
    changed = IMAGES_NHWC.copy()
    changed[7, 1, 1, 1] ^= 1
    assert ProgramImages(changed).identity != first
    pairs = ProgramImages(Pairs(lambda i: (IMAGES_NHWC[i], 0)))
    assert pairs.identity == ProgramImages(Pairs(lambda i: {"image": IMAGES_NHWC[i]})).identity
    assert pairs.identity != ProgramImages(Pairs(lambda i: changed[i])).identity
    assert PythonObject(name="a").settings == PythonObject(name="b").settings == {}
    prints = [opened(IMAGES_NHWC, tmp_path / name)[1]["train"].fingerprint for name in "ab"]
    assert prints[0] == prints[1]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_more_than_eight_bits(tmp_path, dtype):
    scale = 1 / 255 if dtype == np.float32 else 257
    images = (IMAGES_NHWC.astype(np.float64) * scale).astype(dtype)
    window = {} if dtype == np.float32 else {"window": (0, 65535)}
    for one in (images, Pairs(lambda i: images[i])):
        _, stores = opened(one, tmp_path, **window)
        assert stored(stores) == AS_GIVEN


def test_any_number_of_channels(tmp_path):
    images = RANDOM.integers(0, 256, (30, 8, 10, 5)).astype(np.uint8)
    for one in (images, Pairs(lambda i: images[i])):
        _, stores = opened(one, tmp_path, channels=(4, 0))
        assert stored(stores) == sorted(image[..., [4, 0]].tobytes() for image in images)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no images"),
        (iter(IMAGES_NHWC), "must have a length"),
        ({"a": 1}, "the first image cannot be read"),
        (Pairs(lambda i: {"pic": 1}), "has the keys pic, and none of image"),
        (Pairs(lambda i: "text that is no file.png"), "no such file|cannot be read|No such file"),
        (Pairs(lambda i: np.zeros(3)), "is no image"),
        (
            Pairs(lambda i: RANDOM.integers(0, 9, (4, 4, 3)).astype(np.uint8)),
            "another image each time it is read; remove its random transforms",
        ),
    ],
)
def test_what_is_no_set_of_images_is_refused(images, said, tmp_path):
    with pytest.raises((UserError, FileNotFoundError), match=said):
        opened(images, tmp_path)


def test_an_image_that_raises_is_skipped_and_named(tmp_path):
    def item(i):
        if i == 5:
            raise ValueError("no such image on the server")
        return IMAGES_NHWC[i]

    _, stores = opened(Pairs(item), tmp_path)
    kept = [image.tobytes() for store in stores.values() for image in store.images]
    assert len(kept) == 29 and IMAGES_NHWC[5].tobytes() not in kept
    with pytest.raises(UserError, match=r"first image cannot be read .*no such image"):
        opened(Pairs(lambda i: item(5)), tmp_path)


def test_items_of_another_type_than_the_first_are_skipped(tmp_path):
    def item(i):
        return IMAGES_NHWC[i] if i != 3 else IMAGES_NHWC[i].astype(np.float32) / 255

    _, stores = opened(Pairs(item), tmp_path)
    assert sum(map(len, stores.values())) == 29


def test_a_transform_that_is_random_now_and_then_is_refused(tmp_path):
    random = np.random.default_rng(0)

    def item(i):
        return IMAGES_NHWC[i][:, ::-1] if random.random() < 0.5 else IMAGES_NHWC[i]

    with pytest.raises(UserError, match="another image each time"):
        opened(Pairs(item), tmp_path)


def test_bfloat16_has_the_numbers_of_float32():
    images = torch.rand(3, 3, 4, 4)
    found = ProgramImages(images.bfloat16())
    assert found.identity == ProgramImages(images.bfloat16().float()).identity


def test_a_name_that_nobody_gave():
    with pytest.raises(UserError, match=r"data\.name=mnie: .*did you mean 'mine'"):
        name_images("mine", ProgramImages(IMAGES_NHWC))
        SOURCES.build(SOURCES.schema("object")(name="mnie")).split("train")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_images_of_pillow_keep_their_values(dtype):
    values = (np.arange(16).reshape(4, 4) * 4000).astype(dtype)
    image = Image.fromarray(values)
    assert np.array_equal(pixels_of(image, "data")[..., 0], values)


def test_transparency_is_composited_on_white_as_in_files():
    pixels_HWC = RANDOM.integers(0, 256, (4, 4, 4)).astype(np.uint8)
    pixels_HWC[:2] = 0
    image = Image.fromarray(pixels_HWC)
    assert (pixels_of(image, "data")[:2] == 255).all()
    assert pixels_of(image.convert("LA"), "data").shape == (4, 4, 3)
    assert (pixels_of(image.convert("P"), "data")[..., 0]).shape == (4, 4)
