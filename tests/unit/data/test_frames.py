"""Frames of animations and pages of TIFFs as images of their own."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image, features

from ssdistill.data import file_split, frames
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.undecoded import known_stores
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

FORMS = {"GIF": "gif", "WEBP": "webp", "PNG": "png", "TIFF": "tif"}
if features.check("avif"):
    FORMS["AVIF"] = "avif"
LEVELS = (10, 90, 170, 250)


def animation(form: str, levels=LEVELS, mode: str = "L") -> bytes:
    first, *rest = [Image.new(mode, (16, 16), level) for level in levels]
    file = io.BytesIO()
    how = {"lossless": True} if form == "WEBP" else {}
    first.save(file, form, save_all=True, append_images=rest, **how)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three classes... of one: an animation of each format, and a still image."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
    for form, suffix in FORMS.items():
        (tmp_path / "images" / "a" / f"x.{suffix}").write_bytes(animation(form))
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "images" / "b" / "still.png")
    Image.new("RGB", (16, 16), (4, 5, 6)).save(tmp_path / "images" / "b" / "still.jpg")
    return tmp_path


def settings_of(kind="folder", **more):
    return SOURCES.schema(kind).model_validate({"kind": kind, "test_fraction": 0, **more})


def stores_of(folder, opener=open_stores, **more):
    settings = settings_of(path=str(folder / "images"), **more)
    return opener(open_source(settings), settings, 8, folder / "data")["train"]


@pytest.mark.parametrize("pixels", ["stored", "original"])
def test_each_frame_is_an_image(folder, pixels):
    images = stores_of(folder, frames="all", pixels=pixels)
    assert len(images) == 4 * len(FORMS) + 2 and not images.bad
    expected = [*LEVELS] * len(FORMS)
    levels = np.asarray(images.images).mean((1, 2, 3))
    np.testing.assert_allclose(levels[: len(expected)], expected, atol=2)
    raw = images.source.split("train")
    names = [raw.name(i) for i in range(len(raw))]
    assert "a/x.gif#3" in names and "a/x.gif#0" in names and "b/still.png" in names
    assert images.labels.tolist() == [0] * 4 * len(FORMS) + [1, 1]


def test_frames_of_both_holdings_are_equal_and_cut_alike(folder):
    stored = stores_of(folder, frames="all", pixels="stored")
    originals = stores_of(folder, frames="all", pixels="original")
    np.testing.assert_array_equal(stored.images[:], originals.images[:])
    image, _ = originals._decoded(2, 1)
    assert abs(image.float().mean() - LEVELS[2]) < 2


def test_by_default_the_first_frame_is_read_and_stacks_are_refused(folder):
    images = stores_of(folder, max_bad=0.5)
    assert len(images) == len(FORMS) + 1
    assert [name for name, _ in images.bad] == ["a/x.tif"]


def test_counts_are_kept_and_a_dry_run_writes_none(folder, monkeypatch):
    assert len(stores_of(folder, known_stores, frames="all")) == 4 * len(FORMS) + 2
    assert not (folder / "data").exists()
    stores_of(folder, frames="all")
    (folder / "images" / "a" / "more.gif").write_bytes(animation("GIF", (1, 200)))
    counted = []
    real = frames._count
    monkeypatch.setattr(frames, "_count", lambda raw, row: counted.append(row) or real(raw, row))
    assert len(stores_of(folder, frames="all")) == 4 * len(FORMS) + 4
    assert len(counted) == 1
    kept = next((folder / "data").glob("*frames*.npz"))
    kept.write_bytes(kept.read_bytes()[:-30])
    assert len(stores_of(folder, frames="all")) == 4 * len(FORMS) + 4
    assert len(counted) == 1 + len(FORMS) + 3


def test_pages_of_more_than_8_bits_and_of_several_sizes(tmp_path):
    (tmp_path / "images").mkdir()
    pages = [Image.fromarray(np.full((s, 12), v, np.uint16)) for s, v in ((12, 0), (20, 4095))]
    pages[0].save(tmp_path / "images" / "a.tif", save_all=True, append_images=pages[1:])
    for pixels in ("stored", "original"):
        images = stores_of(tmp_path, frames="all", pixels=pixels)
        assert images.window == (0, 4095)
        np.testing.assert_array_equal(np.asarray(images.images[:]).mean((1, 2, 3)), [0, 255])
    height, width = images.sizes(np.arange(2))
    assert height.tolist() == [12, 20] and width.tolist() == [12, 12]


def test_lists_and_archives_have_frames_too(folder):
    (folder / "list.csv").write_text("path,label\nimages/a/x.gif,7\nimages/b/still.png,9\n")
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "images" / "a" / "x.gif", "x.gif")
        tar.add(folder / "images" / "b" / "still.png", "y.png")
    for kind, path in (("list", "list.csv"), ("tar", "a.tar")):
        settings = settings_of(kind, path=str(folder / path), frames="all")
        images = open_stores(open_source(settings), settings, 8, folder / "data")["train"]
        np.testing.assert_allclose(np.asarray(images.images).mean((1, 2, 3)), [*LEVELS, 2], atol=1)
    with pytest.raises(UserError, match=r"data.frames=all: data.kind=digits holds arrays"):
        settings = SOURCES.schema("digits").model_validate({"kind": "digits", "frames": "all"})
        open_source(settings).split("train")


def test_without_labels_frames_are_the_same(folder):
    images = stores_of(folder, frames="all", labels="none")
    assert len(images) == 4 * len(FORMS) + 2
    with pytest.raises(UserError, match="labels are disabled"):
        _ = images.labels


def test_a_file_of_too_many_frames_is_one_bad_image(folder, monkeypatch):
    monkeypatch.setattr(frames, "MOST_FRAMES", 3)
    images = stores_of(folder, frames="all", max_bad=0.9)
    assert [reason for _, reason in images.bad] == ["more than 3 frames"] * len(FORMS)
    assert len(images) == 2


@pytest.mark.parametrize("pixels", ["stored", "original"])
@pytest.mark.parametrize("choice", ["first", "all"])
def test_a_dry_run_asks_for_the_status_of_each_file_once(folder, monkeypatch, pixels, choice):
    asked = []
    real = file_split._lines
    monkeypatch.setattr(file_split, "_lines", lambda piece: asked.extend(piece[0]) or real(piece))
    stores_of(folder, known_stores, frames=choice, pixels=pixels, max_bad=0.5)
    assert sorted(asked) == sorted(set(asked))
    # Without an index there is nothing to compare them with.
    none = (choice, pixels) == ("first", "original")
    assert len(asked) == (0 if none else len(FORMS) + 2)


def test_frames_are_counted_whatever_their_size(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    images = stores_of(folder, frames="all", max_pixels=1000)
    assert len(images) == 4 * len(FORMS) + 2
