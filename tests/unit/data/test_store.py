import errno
import json
import logging
import os
import shutil
import threading
import time
import warnings

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ssdistill.data import store as store_module
from ssdistill.data.decode import BadImage
from ssdistill.data.sources.digits import Digits
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.store import open_store
from ssdistill.data.store_writer import fingerprint_of
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


class FakeSplit(RawSplit):
    title = "fake train"

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return self.source.count

    def image(self, i):
        time.sleep(self.source.seconds)
        self.source.decoded.append(i)
        if i in self.source.bad:
            raise BadImage("torn")
        return np.random.default_rng(i).integers(0, 256, (6, 9, 3), dtype=np.uint8)

    def name(self, i):
        return f"{i}.png"

    def identity(self):
        return self.source.content

    def labels(self):
        self.source.labels_read += 1
        return np.arange(len(self)) * 10

    @property
    def class_names(self):
        self.source.labels_read += 1
        return ("a", "b")


class FakeSource(Source):
    """Counts how often it is read."""

    kind = "fake"

    def __init__(self, count=40, bad=(), content="x", seconds=0.0):
        self.count, self.bad, self.content, self.seconds = count, set(bad), content, seconds
        self.decoded, self.labels_read = [], 0

    def _split(self, name):
        return FakeSplit(self)


def test_images_are_mapped_uint8_squares_in_the_order_of_the_source(tmp_path):
    store = open_store(FakeSource(), "train", 4, tmp_path)
    assert isinstance(store.images, np.memmap)
    assert store.images.dtype == np.uint8
    assert store.images.shape == (40, 4, 4, 3)
    assert len(store) == 40
    assert store.names[:2] == ["0.png", "1.png"]
    assert not store.images.flags.writeable


def test_a_stored_picture_is_the_center_of_the_original(tmp_path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = (255, 128, 7)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    store = open_store(
        Folder(path=str(tmp_path), test_fraction=0.0), "train", 8, tmp_path / "stores"
    )
    assert (store.images[0] == (255, 128, 7)).all()


def test_arrays_of_the_right_size_are_stored_untouched(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:2, ..., 0])
    source = Npz(path=str(tmp_path / "a.npz"))
    assert np.array_equal(open_store(source, "train", 5, tmp_path).images, images)
    gray = open_store(source, "test", 5, tmp_path).images
    assert np.array_equal(gray[..., 2], images[:2, ..., 0])


def test_chunks_join_without_a_seam(tmp_path, monkeypatch):
    whole = open_store(FakeSource(), "train", 4, tmp_path / "whole")
    monkeypatch.setattr("ssdistill.data.store_writer.CHUNK_BYTES", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    pieces = open_store(FakeSource(), "train", 4, tmp_path / "pieces")
    assert np.array_equal(whole.images, pieces.images)
    assert whole.fingerprint == pieces.fingerprint


def test_mean_and_std_are_those_of_the_images(tmp_path):
    store = open_store(FakeSource(), "train", 4, tmp_path)
    pixels = np.asarray(store.images).reshape(-1, 3) / 255
    assert store.mean == pytest.approx(pixels.mean(0), abs=1e-12)
    assert store.std == pytest.approx(pixels.std(0), abs=1e-9)


def test_digits_come_at_their_default_size(tmp_path):
    source = Digits()
    store = open_store(source, "test", source.default_image_size, tmp_path)
    assert store.images.shape == (500, 16, 16, 3)
    assert len(store.labels) == 500
    assert 0.2 < store.mean[0] < 0.4


def test_reopening_decodes_nothing(tmp_path):
    source = FakeSource()
    first = open_store(source, "train", 4, tmp_path)
    again = open_store(source, "train", 4, tmp_path)
    assert len(source.decoded) == 40
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.images, first.images)
    assert again.mean == first.mean


@pytest.mark.parametrize("change", [{"content": "y"}, {"size": 5}, {"split": "test"}])
def test_other_pictures_size_or_split_make_another_store(tmp_path, change):
    size, split = change.pop("size", 4), change.pop("split", "train")
    open_store(FakeSource(), "train", 4, tmp_path)
    source = FakeSource(**change)
    open_store(source, split, size, tmp_path)
    assert len(source.decoded) == 40


def test_a_rewritten_npz_is_noticed(tmp_path):
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    for value in (1, 2):
        np.savez(tmp_path / "a.npz", train_images=images + value, test_images=images)
        store = open_store(Npz(path=str(tmp_path / "a.npz")), "train", 4, tmp_path)
        assert (store.images == value).all()


def test_the_fingerprint_follows_pixels_names_and_size(tmp_path):
    def fingerprint(folder, size=4, names=("a.bmp", "b.bmp"), value=9):
        path = tmp_path / folder
        path.mkdir()
        for name in names:
            Image.new("RGB", (4, 4), (value, 0, 0)).save(path / name)
        source = Folder(path=str(path), test_fraction=0.0)
        return open_store(source, "train", size, path / "stores").fingerprint

    same = fingerprint("one")
    assert len(same) == 64
    assert fingerprint("moved") == same
    others = {
        fingerprint("pixels", value=10),
        fingerprint("names", names=("a.bmp", "c.bmp")),
        fingerprint("size", size=5),
    }
    assert len({same, *others}) == 4


def test_pictures_larger_than_a_chunk_have_the_same_fingerprint(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    whole = fingerprint_of(images, ["a", "b", "c"])
    monkeypatch.setattr("ssdistill.data.store_writer.CHUNK_BYTES", 1)
    assert fingerprint_of(images, ["a", "b", "c"]) == whole


def test_labels_are_never_read_unless_asked_for(tmp_path):
    source = FakeSource(count=10, bad={2, 5})
    store = open_store(source, "train", 4, tmp_path, max_bad=0.5)
    store = open_store(source, "train", 4, tmp_path, max_bad=0.5)
    assert [image.sum() for image in store.images]
    assert store.mean and store.names and store.bad
    assert source.labels_read == 0
    assert store.labels.tolist() == [0, 10, 30, 40, 60, 70, 80, 90]
    assert store.class_names == ("a", "b")
    assert source.labels_read == 2


def test_no_label_is_on_disk(tmp_path):
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    arrays = {"train_images": images, "test_images": images, "train_labels": np.arange(3)}
    np.savez(tmp_path / "a.npz", **arrays, class_names=np.array(["cat", "dog", "emu"]))
    store = open_store(Npz(path=str(tmp_path / "a.npz")), "train", 4, tmp_path / "stores")
    assert store.class_names == ("cat", "dog", "emu")
    meta = json.loads((store.folder / store_module.META).read_text())
    assert not {"labels", "class_names"} & set(meta)
    assert "emu" not in json.dumps(meta)


def test_labels_of_an_unlabeled_store_are_refused(tmp_path):
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images)
    store = open_store(Npz(path=str(tmp_path / "a.npz")), "train", 4, tmp_path)
    with pytest.raises(UserError, match="has no labels"):
        store.labels  # noqa: B018


def test_bad_pictures_are_left_out_listed_and_reported_in_one_line(tmp_path, caplog):
    source = FakeSource(bad={3, 17})
    good = FakeSource(content="all good")
    with caplog.at_level(logging.WARNING):
        store = open_store(source, "train", 4, tmp_path)
        whole = open_store(good, "train", 4, tmp_path)
    assert store.bad == [("3.png", "torn"), ("17.png", "torn")]
    assert np.array_equal(store.images, np.delete(whole.images, [3, 17], axis=0))
    assert store.names == [n for n in whole.names if n not in ("3.png", "17.png")]
    assert len(caplog.messages) == 1
    assert "2 of 40" in caplog.text and "3.png: torn" in caplog.text
    assert open_store(source, "train", 4, tmp_path).bad == store.bad


def test_real_damaged_files_are_listed_with_their_reasons(tmp_path):
    for i in range(10):
        Image.new("RGB", (20, 20), (i, i, i)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "4.jpg").write_bytes(b"")
    (tmp_path / "7.jpg").write_bytes((tmp_path / "7.jpg").read_bytes()[:-200])
    source = Folder(path=str(tmp_path), test_fraction=0.0)
    store = open_store(source, "train", 8, tmp_path / "stores", max_bad=0.2)
    assert [name for name, _ in store.bad] == ["4.jpg", "7.jpg"]
    assert store.bad[0][1] == "empty file"
    assert "truncated" in store.bad[1][1].lower()


def test_too_many_bad_pictures_are_refused_and_leave_nothing(tmp_path):
    source = FakeSource(bad={3, 4, 5})
    with pytest.raises(UserError, match=r"more than 5.0% of 40 .*first: 3.png: torn.*max_bad"):
        open_store(source, "train", 4, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(open_store(source, "train", 4, tmp_path, max_bad=0.1)) == 37
    with pytest.raises(UserError, match="max_bad"):
        open_store(source, "train", 4, tmp_path, max_bad=0.05)


def test_a_split_without_one_readable_picture_is_refused(tmp_path):
    with pytest.raises(UserError, match="no image can be read"):
        open_store(FakeSource(count=2, bad={0, 1}), "train", 4, tmp_path, max_bad=1.0)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "stores: the disk is full"), (errno.EIO, "stores: .*error")],
)
def test_a_full_disk_is_reported_and_leaves_no_half_store(tmp_path, monkeypatch, number, message):
    def fail(_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=message):
            open_store(FakeSource(), "train", 4, tmp_path / "stores")
    assert not [p for p in (tmp_path / "stores").iterdir() if p.is_dir()]
    assert len(open_store(FakeSource(), "train", 4, tmp_path / "stores")) == 40


def test_an_interruption_leaves_no_half_store(tmp_path):
    class Interrupted(FakeSplit):
        def image(self, i):
            if i == 20:
                raise KeyboardInterrupt
            return super().image(i)

    source = FakeSource()
    source._split = lambda _: Interrupted(source)
    with pytest.raises(KeyboardInterrupt):
        open_store(source, "train", 4, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    folder = open_store(FakeSource(), "train", 4, tmp_path).folder
    (folder / store_module.META).unlink()
    folder.with_name(folder.name + ".partial").mkdir()
    source = FakeSource()
    assert len(open_store(source, "train", 4, tmp_path)) == 40
    assert len(source.decoded) == 40


def test_a_cut_store_is_named(tmp_path):
    folder = open_store(FakeSource(), "train", 4, tmp_path).folder
    os.truncate(folder / store_module.IMAGES, 500)
    with pytest.raises(UserError, match=r"corrupt image store .*delete the folder"):
        open_store(FakeSource(), "train", 4, tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write the image store in .*file"):
        open_store(FakeSource(), "train", 4, tmp_path / "file")


def test_two_that_open_at_once_decode_once(tmp_path):
    source = FakeSource(count=40, seconds=0.01)
    stores = []
    threads = [
        threading.Thread(target=lambda: stores.append(open_store(source, "train", 4, tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(source.decoded) == 40
    assert len({store.fingerprint for store in stores}) == 1
    assert len(stores) == 3


def test_who_has_waited_long_still_waits_for_the_maker(tmp_path, caplog):
    folder = open_store(FakeSource(), "train", 4, tmp_path).folder
    shutil.rmtree(folder)
    source = FakeSource()
    waiting = threading.Thread(target=open_store, args=(source, "train", 4, tmp_path))
    with FileLock(f"{folder}.lock"):
        waiting.start()
        while waiting.is_alive() and "waiting for another process" not in caplog.text:
            time.sleep(0.01)
        waiting.join(0.5)
        assert waiting.is_alive()
        assert not source.decoded
    waiting.join()
    assert len(source.decoded) == 40


def test_what_stands_in_the_place_of_a_lock_is_named(tmp_path):
    folder = open_store(FakeSource(), "train", 4, tmp_path).folder
    shutil.rmtree(folder)
    lock = folder.with_name(f"{folder.name}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(UserError, match=r"expected a lock file; remove what is there: rm -r"):
        open_store(FakeSource(), "train", 4, tmp_path)


def test_a_store_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("ssdistill.data.store.shutil.disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"data.image_size=32: 1297 images take 0.0 GB, but only"):
        open_store(Digits(), "train", 32, tmp_path)
    assert not list(tmp_path.glob("digits*/*"))


@pytest.mark.parametrize("size", [8193, 10**12, 0])
def test_a_size_that_no_network_takes_is_refused_where_it_is_written(size):
    with pytest.raises(ValueError, match="image_size"):
        SOURCES.schema("digits")(image_size=size)


def test_pillow_says_nothing_of_a_damaged_picture(tmp_path):
    """Whether a TIFF has more than 8 bits is found out before it is decoded."""
    (tmp_path / "set").mkdir()
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "set" / f"{number}.png")
    (tmp_path / "set" / "x.png").write_bytes(b"II*\0\x08\0\0\0")
    folder = Folder(path=str(tmp_path / "set"), test_fraction=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        store = open_store(folder, "train", 8, tmp_path / "stores")
    assert [name for name, _ in store.bad] == ["x.png"] and not said


DAMAGES = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "a folder": (os.mkdir, "is not a regular file"),
    "nesting": (lambda path: path.write_text("[" * 200_000), "corrupt image store"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "corrupt image store"),
}


@pytest.mark.parametrize("name", ["images.npy", "store.json", "checksums.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_stands_in_place_of_a_stores_file_is_told(tmp_path, name, damage):
    path = open_store(Digits(), "test", 8, tmp_path).folder / name
    path.unlink()
    make, message = DAMAGES[damage]
    make(path)
    with pytest.raises(UserError, match=f"{message}.*delete the folder to rebuild it") as caught:
        open_store(Digits(), "test", 8, tmp_path)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
