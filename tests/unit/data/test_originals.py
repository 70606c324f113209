"""Views cut from originals: the pixels, the order, and what happens to images that fail."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import SIZES, smooth_noise, write_images
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from ssdistill.data import originals as originals_module
from ssdistill.data import retry
from ssdistill.data.geometry import Boxes
from ssdistill.data.loader import Loader
from ssdistill.data.opening import open_originals, open_stores, uses_originals
from ssdistill.data.originals import Originals
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.data.store import open_store
from ssdistill.data.view_plan import ViewPlan
from ssdistill.data.views import view_parameters
from ssdistill.errors import UserError

PLAIN = ViewRecipe(scale=(0.2, 1.0), flip=0.0)
ORIGINAL = StoreSettings(pixels="original")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def originals(folder: Path, tmp_path: Path) -> Originals:
    source = Folder(path=str(folder), test_fraction=0)
    return open_originals(source, "train", ORIGINAL, 16, tmp_path / "data")


def loader_of(originals: Originals, **more) -> Loader:
    return Loader(originals, 4, 7, 9, **more)


def test_a_view_is_torchvisions_crop_of_the_original_bit_by_bit(originals, folder):
    plan = ViewPlan((PLAIN, replace_size(PLAIN, 9)), seed=3, size=12)
    batch = loader_of(originals).batch(3, plan)
    for number, side in ((0, 12), (1, 9)):
        crops = batch.crops[number]
        boxes = crops.params.boxes
        for b, row in enumerate(batch.index_B.tolist()):
            image_HWC = np.array(Image.open(folder / f"{row}.png"))
            edges = [int(e[b]) for e in (boxes.top_B, boxes.left_B, boxes.height_B, boxes.width_B)]
            image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
            wanted_CHW = tv.resized_crop(image_CHW, *edges, [side, side], antialias=True)
            assert torch.equal(crops.pixels_BCHW[b], wanted_CHW / 255)
            (crop_1CHW,) = originals.cut(
                np.array([row]), [crops.params.take(slice(b, b + 1)).boxes], [side]
            )
            assert torch.equal(crop_1CHW[0], wanted_CHW)
    views = plan.views(batch)
    assert torch.equal(views[0], batch.crops[0].pixels_BCHW)


def replace_size(recipe: ViewRecipe, size: int) -> ViewRecipe:
    return recipe.model_copy(update={"size": size})


def test_crops_reach_the_edges_of_a_wide_image(originals):
    """A stored square would hold columns 29 to 60 of the 90 alone."""
    plan, loader = ViewPlan((PLAIN,), seed=0, size=8), loader_of(originals)
    lefts = []
    for step in range(200):
        batch = loader.batch(step, plan)
        wide_B = batch.index_B == 3
        lefts += batch.crops[0].params.left_B[wide_B].tolist()
    assert min(lefts) < 15 and max(lefts) > 45


def test_an_image_is_read_once_for_all_its_views(originals, monkeypatch):
    reads = []
    read = originals.raw.read
    monkeypatch.setattr(originals.raw, "read", lambda row: reads.append(row) or read(row))
    batch = loader_of(originals).batch(0, ViewPlan((PLAIN, PLAIN, PLAIN), seed=0, size=8))
    assert sorted(reads) == sorted(batch.index_B.tolist())


def test_flip_and_colors_are_drawn_as_of_stored_images(originals):
    """The same draws, whichever way the pixels were cut."""
    recipe = ViewRecipe(flip=0.5, jitter=1.0, brightness=0.4, hue=0.1, grayscale=0.5, blur=0.5)
    batch = Loader(originals, 8, 7, 9).batch(1, ViewPlan((recipe,), seed=1, size=16))
    params = batch.crops[0].params
    key = {"seed": 1, "epoch": batch.epoch, "index_B": batch.index_B, "view": 0}
    same = view_parameters(recipe, height=16, width=16, **key)
    for name in ("flip_B", "jitter_B", "order_B4", "factor_B4", "grayscale_B", "blur_B"):
        assert torch.equal(getattr(params, name), getattr(same, name)), name


def test_crops_are_flipped_where_they_should_be(originals):
    plan = ViewPlan((ViewRecipe(flip=0.5),), seed=1, size=16)
    batch = Loader(originals, 8, 7, 9).batch(1, plan)
    params = batch.crops[0].params
    (crops_BCHW,) = originals.cut(batch.index_B.numpy(), [params.boxes], [16])
    flip_B, crops_BCHW, view_BCHW = params.flip_B, crops_BCHW / 255, plan.views(batch)[0]
    assert 0 < flip_B.sum() < 8
    assert torch.equal(view_BCHW[flip_B], crops_BCHW[flip_B].flip(3))
    assert torch.equal(view_BCHW[~flip_B], crops_BCHW[~flip_B])


@pytest.mark.parametrize("workers", [1, 3])
def test_any_step_is_the_same_whenever_and_by_however_many_it_is_read(folder, tmp_path, workers):
    plan = ViewPlan((PLAIN,), seed=3, size=8)
    source = Folder(path=str(folder), test_fraction=0)
    first = open_originals(source, "train", ORIGINAL, 16, tmp_path / "data")
    other = open_originals(source, "train", ORIGINAL, 16, tmp_path / "data", workers=workers)
    all_steps = list(loader_of(first).iterate(0, plan))
    assert len(all_steps) == 9
    for offset, batch in enumerate(loader_of(other, ahead=3).iterate(5, plan)):
        assert torch.equal(batch.index_B, all_steps[5 + offset].index_B)
        assert torch.equal(batch.crops[0].pixels_BCHW, all_steps[5 + offset].crops[0].pixels_BCHW)


def test_ranks_take_slices_of_one_batch(originals):
    plan = ViewPlan((PLAIN,), seed=3, size=8)
    whole = loader_of(originals).batch(2, plan)
    parts = [loader_of(originals, world_size=2, rank=r).batch(2, plan) for r in range(2)]
    assert torch.equal(torch.cat([part.index_B for part in parts]), whole.index_B)
    pixels = torch.cat([part.crops[0].pixels_BCHW for part in parts])
    assert torch.equal(pixels, whole.crops[0].pixels_BCHW)


def test_an_epoch_has_every_image_once(originals):
    plan = ViewPlan((PLAIN,), seed=3, size=8)
    rows = [loader_of(originals).batch(step, plan).index_B for step in range(4)]
    assert sorted(torch.cat(rows[:2]).tolist()) == list(range(8))
    assert torch.cat(rows[:2]).tolist() != torch.cat(rows[2:]).tolist()


def test_neighbors_are_cut_from_the_neighbors_images(originals):
    neighbors_NK = (np.arange(8)[:, None] + 1) % 8
    plan = ViewPlan((PLAIN, PLAIN), seed=0, size=8, extra=("neighbor_0", "neighbor_1"))
    batch = loader_of(originals, neighbors=neighbors_NK).batch(0, plan)
    views = plan.views(batch)
    assert len(views) == 4 and batch.crops.keys() == {0, 1, 2, 3}
    near_B = (batch.index_B.numpy() + 1) % 8
    boxes = batch.crops[2].params.boxes
    wanted = originals.cut(near_B, [boxes], [8])[0]
    assert torch.equal(views[2], wanted / 255)
    height_B, width_B = originals.sizes(near_B)
    assert (boxes.top_B + boxes.height_B <= torch.from_numpy(height_B)).all()
    assert (boxes.left_B + boxes.width_B <= torch.from_numpy(width_B)).all()


def test_central_squares_are_those_of_a_store(originals, folder, tmp_path):
    source = Folder(path=str(folder), test_fraction=0)
    store = open_store(source, "train", 16, tmp_path / "stored")
    assert originals.images.shape == store.images.shape == (8, 16, 16, 3)
    assert np.array_equal(originals.images[:], store.images)
    assert np.array_equal(originals.images[...], store.images)
    assert np.array_equal(originals.images[-1], store.images[-1])
    assert np.array_equal(originals.images[1:7:2], store.images[1:7:2])
    assert np.array_equal(originals.images[np.array([5, 2])], store.images[[5, 2]])
    assert np.array_equal(np.asarray(originals.images), store.images)
    with pytest.raises(IndexError):
        originals.images[8]
    assert originals.mean == pytest.approx(store.mean) and originals.std == pytest.approx(store.std)


def test_the_fingerprint_is_of_the_content_not_of_its_time_or_name(folder, tmp_path):
    def fingerprint(size: int = 16) -> str:
        source = Folder(path=str(folder), test_fraction=0)
        return open_originals(source, "train", ORIGINAL, size, tmp_path / "data").fingerprint

    first = fingerprint()
    Path(folder / "0.png").touch()
    (folder / "7.png").rename(folder / "8.png")
    assert fingerprint() == first
    assert fingerprint(17) != first
    Image.fromarray(smooth_noise(99, *SIZES[0])).save(folder / "0.png")
    assert fingerprint() != first


class TestImagesThatCannotBeRead:
    def opened(self, folder, tmp_path, max_bad=0.5) -> Originals:
        settings = StoreSettings(pixels="original", max_bad=max_bad)
        source = Folder(path=str(folder), test_fraction=0)
        return open_originals(source, "train", settings, 16, tmp_path / "data")

    def test_what_is_cut_off_or_no_image_is_left_out_before_anything_is_decoded(
        self, folder, tmp_path, caplog
    ):
        whole = (folder / "2.png").read_bytes()
        (folder / "2.png").write_bytes(whole[: len(whole) // 2])
        (folder / "5.png").write_bytes(b"no image at all")
        (folder / "6.png").write_bytes(b"")
        originals = self.opened(folder, tmp_path)
        assert [name for name, _ in originals.bad] == ["2.png", "5.png", "6.png"]
        assert "empty file" in dict(originals.bad)["6.png"]
        assert originals.rows(np.arange(5)).tolist() == [0, 1, 3, 4, 7]
        assert "skipping 3 of 8 images that cannot be read" in caplog.text
        assert originals.sizes(np.array([2, 4]))[0].tolist() == [31, 70]

    def test_more_than_max_bad_are_refused(self, folder, tmp_path):
        (folder / "5.png").write_bytes(b"no image at all")
        with pytest.raises(UserError, match=r"raise data\.max_bad"):
            self.opened(folder, tmp_path, max_bad=0.1)

    def test_what_fails_later_is_a_blank_image_and_said(self, folder, tmp_path, caplog):
        originals = self.opened(folder, tmp_path)
        (folder / "4.png").write_bytes(b"\x89PNG damaged since")
        plan = ViewPlan((PLAIN,), seed=0, size=8)
        loader = loader_of(originals)
        batch = next(b for b in (loader.batch(s, plan) for s in range(2)) if 4 in b.index_B)
        at = batch.index_B.tolist().index(4)
        mean = (torch.tensor(originals.mean) * 255).round().to(torch.uint8)
        assert (batch.crops[0].pixels_BCHW[at] == mean[:, None, None] / 255).all()
        assert "4.png" in caplog.text and "blank" in caplog.text
        assert (originals.images[4] == mean.numpy()).all()
        assert caplog.text.count("4.png") == 1

    def test_too_many_that_fail_later_end_the_run(self, folder, tmp_path):
        originals = self.opened(folder, tmp_path, max_bad=0.2)
        for name in ("1.png", "4.png"):
            (folder / name).unlink()
        with pytest.raises(UserError, match=r"more than 20.0% of 8 images.*data\.max_bad"):
            originals.images[:]

    def test_a_read_that_fails_is_repeated(self, folder, tmp_path, monkeypatch, caplog):
        originals = self.opened(folder, tmp_path)
        monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0, 0.0))
        read, failures = originals.raw.read, {3: 2, 6: 9}

        def flaky(row: int) -> bytes:
            if failures.get(row, 0) > 0:
                failures[row] -= 1
                raise OSError(5, "Input/output error")
            return read(row)

        wanted = originals.cut(np.arange(8), [boxes_of(originals)], [8])[0]
        monkeypatch.setattr(originals.raw, "read", flaky)
        crops_BCHW = originals.cut(np.arange(8), [boxes_of(originals)], [8])[0]
        assert torch.equal(crops_BCHW[:6], wanted[:6])
        assert not torch.equal(crops_BCHW[6], wanted[6])
        assert "retrying in" in caplog.text and "6.png" in caplog.text


def boxes_of(originals: Originals):
    height_B, width_B = map(torch.from_numpy, originals.sizes(np.arange(len(originals))))
    zero_B = torch.zeros_like(height_B)
    return Boxes(zero_B, zero_B, height_B, width_B)


class TestChoice:
    def test_small_images_and_arrays_are_stored(self, folder, tmp_path):
        source = Folder(path=str(folder))
        auto = StoreSettings()
        assert not uses_originals(source, auto, 96, tmp_path)
        assert uses_originals(source, auto, 97, tmp_path)
        np.savez(
            tmp_path / "a.npz",
            train_images=np.zeros((4, 128, 128), np.uint8),
            test_images=np.zeros((4, 128, 128), np.uint8),
        )
        arrays = Npz(path=str(tmp_path / "a.npz"))
        assert not uses_originals(arrays, auto, 128, tmp_path)
        with pytest.raises(UserError, match=r"data\.pixels=original: data\.kind=npz has arrays"):
            uses_originals(arrays, ORIGINAL, 128, tmp_path)

    def test_what_is_stored_already_stays_stored(self, folder, tmp_path):
        source = Folder(path=str(folder))
        open_store(source, "train", 100, tmp_path)
        assert not uses_originals(source, StoreSettings(), 100, tmp_path)
        assert uses_originals(source, ORIGINAL, 100, tmp_path)

    def test_both_ways_open_by_the_settings(self, folder, tmp_path):
        source = Folder(path=str(folder))
        for settings, kind in ((ORIGINAL, "Originals"), (StoreSettings(pixels="stored"), "Store")):
            opened = open_stores(source, settings, 120, tmp_path / kind)
            assert {type(images).__name__ for images in opened.values()} == {kind}


def test_two_batches_are_cut_at_once_and_come_in_order(originals, monkeypatch):
    plan = ViewPlan((PLAIN,), seed=0, size=8)
    wanted = [batch.crops[0].pixels_BCHW for batch in loader_of(originals).iterate(1, plan)]
    cut, both = originals.cut, threading.Barrier(2)

    def together(*args):
        both.wait(timeout=10)
        return cut(*args)

    monkeypatch.setattr(originals, "cut", together)
    found = list(loader_of(originals, ahead=2).iterate(1, plan))
    assert [batch.step for batch in found] == list(range(1, 9))
    for batch, pixels_BCHW in zip(found, wanted, strict=True):
        assert torch.equal(batch.crops[0].pixels_BCHW, pixels_BCHW)


def test_a_loader_of_originals_says_what_makes_it_faster(originals):
    originals.workers = 5
    remedy = loader_of(originals, ahead=3).remedy
    assert "device.workers (now 5)" in remedy and "device.prefetch (now 3)" in remedy
    assert "data.pixels=stored" in remedy


def test_giants_are_in_memory_one_at_a_time(originals, monkeypatch):
    """From decoding to the last of its crops."""
    held, at_once, lock = [0], [], threading.Lock()
    real_decode, real_cut = originals_module.decode, originals_module.cut

    def decode(*args, **how):
        with lock:
            held[0] += 1
            at_once.append(held[0])
        time.sleep(0.01)
        return real_decode(*args, **how)

    def cut(*args):
        crop = real_cut(*args)
        with lock:
            held[0] -= 1
        return crop

    monkeypatch.setattr(originals_module, "decode", decode)
    monkeypatch.setattr(originals_module, "cut", cut)
    plan = ViewPlan((PLAIN,), seed=3, size=12)
    originals.workers = 4
    loader_of(originals).batch(0, plan)
    assert max(at_once) > 1
    monkeypatch.setattr(originals_module, "GIANT_PIXELS", 100)
    at_once.clear()
    loader_of(originals).batch(0, plan)
    assert max(at_once) == 1
