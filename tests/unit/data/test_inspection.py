"""What is said of each image, and which are odd."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from ssdistill.data.checking import Checked, find_near_duplicates
from ssdistill.data.image_index import ImageIndex, verified
from ssdistill.data.inspection import (
    ALPHA,
    ANIMATED,
    CMYK,
    CONSTANT,
    DEEP,
    GRAY,
    PALETTE,
    Inspected,
    mode_name,
    quantiles,
)
from ssdistill.data.opening import index_folder, open_source
from ssdistill.settings.registry import SOURCES

COLOR = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
LAST = np.full((40, 60, 3), 7, np.uint8)
LAST[-1, -1] = 8
GRAYISH = np.repeat(COLOR[..., :1], 3, 2)
ALMOST = GRAYISH.copy()
ALMOST[-1, -1, 0] ^= 1
ANIMATION = {"save_all": True, "append_images": [Image.fromarray(COLOR[::-1])]}

MODES = {
    "rgb.png": (COLOR, {}, 0),
    "rgb.jpg": (COLOR, {}, 0),
    "gray.png": (COLOR[..., 0], {}, GRAY),
    "grayish.png": (GRAYISH, {}, GRAY),
    "almost.png": (ALMOST, {}, 0),
    "cmyk.jpg": (Image.fromarray(COLOR).convert("CMYK"), {}, CMYK),
    "alpha.png": (Image.fromarray(COLOR).convert("RGBA"), {}, ALPHA),
    "palette.png": (Image.fromarray(COLOR).convert("P"), {}, PALETTE),
    "deep.png": (COLOR[..., 0].astype(np.uint16) * 99, {}, DEEP | GRAY),
    "animated.webp": (COLOR, ANIMATION, ANIMATED),
    "constant.png": (np.full((9, 9, 3), (1, 2, 3), np.uint8), {}, CONSTANT),
    "last.png": (LAST, {}, GRAY),
}


@pytest.fixture
def photos(tmp_path):
    for name, (image, options, _) in MODES.items():
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / name, **options)
    return tmp_path / "photos"


def settings(path, **more):
    return SOURCES.schema("folder")(path=str(path), **more)


def test_flags_are_those_of_header_and_pixels(photos):
    raw = open_source(settings(photos, test_fraction=0)).split("train")
    found = Inspected(raw, 10**6)
    flags = {raw.name(row): int(f) for row, f in enumerate(found.facts_N["flags"])}
    assert flags == {name: expected for name, (_, _, expected) in MODES.items()}
    row = next(row for row in range(len(raw)) if raw.name(row) == "rgb.png")
    assert (found.facts_N[row]["height"], found.facts_N[row]["width"]) == (40, 60)
    assert mode_name(GRAY | ALPHA | CONSTANT) == "gray and alpha"


def test_odd_images_are_found_in_both_splits(photos):
    for number in range(20):
        Image.fromarray(COLOR + np.uint8(number)).save(photos / f"{number}.png")
    Image.fromarray(COLOR[:4]).save(photos / "wide.png")
    Image.fromarray(COLOR[:8, :9]).save(photos / "small.png")
    Image.fromarray(np.tile(COLOR, (7, 7, 1))).save(photos / "large.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    (photos / "copy.png").write_bytes((photos / "3.png").read_bytes())
    checked = Checked(settings(photos))
    assert {f.name: f.detail for f in checked.odd_sizes} == {
        "wide.png": "60x4, extreme aspect, small",
        "small.png": "9x8, small",
        "large.png": "420x280, large",
        "constant.png": "9x9, small",
    }
    assert [f.name for f in checked.unreadable] == ["broken.png"]
    assert [f.name for f in checked.constant] == ["constant.png"]
    (group,) = [g for g in checked.duplicates if {f.name for f in g} & {"copy.png"}]
    assert {f.name for f in group} >= {"copy.png", "3.png"}
    odd = {f.name: f.detail for f in checked.other_modes}
    assert odd["cmyk.jpg"] == "CMYK" and odd["deep.png"] == "gray and more than 8 bits"
    assert "rgb.png" not in odd and "palette.png" not in odd and "broken.png" not in odd
    assert sum(checked.modes.values()) == len(checked) - 1
    facts = checked.facts()
    assert facts["counts"]["unreadable"] == 1 and "near_duplicates" not in facts
    assert facts["images"]["train"] + facts["images"]["test"] == len(checked)
    sizes = quantiles(list(checked.parts.values()))
    assert sizes["width"][3] == 60 and sizes["height"][-1] == 280


def test_an_image_over_the_limit_is_listed_and_not_decoded(photos):
    checked = Checked(settings(photos, max_pixels=1000))
    assert {"constant.png"} == set(MODES) - {f.name for f in checked.unreadable}
    assert "data.max_pixels" in checked.unreadable[0].detail


def test_arrays_are_checked_as_files_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 5, 3), dtype=np.uint8)
    images[4], images[7] = images[2], 3
    np.save(tmp_path / "a.npy", images)
    checked = Checked(SOURCES.schema("npy")(path=str(tmp_path / "a.npy")))
    assert [{int(f.name) for f in group} for group in checked.duplicates] == [{2, 4}]
    assert [int(f.name) for f in checked.constant] == [7]


def test_labels_are_not_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 5, 5), np.uint8), y=np.arange(9))
    monkeypatch.setattr("ssdistill.data.sources.npz._labels", lambda *_: 1 / 0)
    checked = Checked(SOURCES.schema("npz")(path=str(tmp_path / "a.npz")))
    assert len(checked.constant) == 9
    assert not checked.source.has_labels


def test_groups_of_equal_images_alone_are_no_near_duplicates(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 5, 3), dtype=np.uint8)
    images[4] = images[2]
    np.savez(tmp_path / "a.npz", train_images=images[:6], test_images=images[6:])
    checked = Checked(SOURCES.schema("npz")(path=str(tmp_path / "a.npz")))
    import torch

    find_near_duplicates(
        checked,
        lambda split: (torch.zeros(6 if split == "train" else 2, 1),
                       np.arange(6) if split == "train" else np.array([0, 2])),
        lambda z_ND: [[2, 4], [1, 7]] if len(z_ND) == 8 else [],
    )  # fmt: skip
    ((first, second),) = checked.near
    assert (first.split, first.row, second.split, second.row) == ("train", 1, "test", 2)
    assert checked.shared == 1 and len(checked.duplicates) == 1


# what an index believes


def test_bytes_that_changed_without_a_trace_are_found(photos, tmp_path):
    config = settings(photos, test_fraction=0)
    source = open_source(config)
    raw, folder = source.split("train"), index_folder(source, "train", config, tmp_path / "data")
    assert verified(raw, folder) is None
    ImageIndex(raw, folder)
    assert verified(raw, folder).tolist() == []
    path = photos / "rgb.png"
    status = os.stat(path)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    raw = open_source(config).split("train")
    assert ImageIndex(raw, folder).num_read == 0
    checked = Checked(config, tmp_path / "data")
    assert [f.name for f in checked.changed] == ["rgb.png"]
    # The index knows now.
    assert verified(raw, folder).tolist() == []
    # A file that is new, or of another time, is no surprise.
    os.utime(photos / "alpha.png", ns=(5, 5))
    Image.fromarray(COLOR).save(photos / "new.png")
    assert verified(open_source(config).split("train"), folder).tolist() == []
    assert Checked(config, tmp_path / "nowhere").changed is None


def test_images_of_chosen_channels_are_checked_with_all_their_bands(tmp_path):
    from ssdistill.data.checking import Checked
    from ssdistill.report.contact_sheet import contact_sheet

    (tmp_path / "tiffs").mkdir()
    by_pixel = {"photometric": "minisblack", "planarconfig": "contig"}
    for n, bands in enumerate([5, 5, 5, 3]):
        values = np.random.default_rng(n % 2).integers(0, 999, (9, 12, bands)).astype("u2")
        tifffile.imwrite(tmp_path / "tiffs" / f"{n}.tif", values, **by_pixel)
    checked = Checked(settings(tmp_path / "tiffs", test_fraction=0, channels=[4, 0, 2]))
    assert [(f.name, f.detail) for f in checked.unreadable] == [
        ("3.tif", "has 3 channels, numbered 0 to 2")
    ]
    assert checked.modes == {"more than 8 bits": 3}
    assert [[f.name for f in group] for group in checked.duplicates] == [["0.tif", "2.tif"]]
    shown = checked.parts["train"].shown(0)
    assert shown.shape == (9, 12, 3) and shown.dtype == np.uint8 and shown.std() > 20
    assert "data:image/jpeg" in contact_sheet(checked, [], 10**6)
