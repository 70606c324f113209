"""Reads that do not return: named, given up, repeated, and counted as unreadable."""

import threading
import time

import numpy as np
import pytest
import torch
from image_files import write_images
from torch import Tensor

from ssdistill.data import hanging_reads, retry
from ssdistill.data.bad_image import BadImage
from ssdistill.data.file_split import FileSplit
from ssdistill.data.geometry import Boxes
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.opening import open_originals
from ssdistill.data.retry import retried
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

SECONDS = 0.3
BROKEN = "3.png"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(hanging_reads, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(hanging_reads, "WARN_SECONDS", 0.1)
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0, 0.0))
    yield
    assert not hanging_reads._hanging, "an abandoned thread has not ended"


class Disk:
    """Reads hang until ``answers`` is set, at most ``times`` of them per name."""

    def __init__(self, names, times=10**6):
        self.answers, self.left = threading.Event(), dict.fromkeys(names, times)
        self.returned = 0

    def wait(self, name):
        if self.left.get(name, 0) > 0:
            self.left[name] -= 1
            self.answers.wait(20)
            self.returned += 1

    def end(self):
        self.answers.set()
        until = time.monotonic() + 10
        while hanging_reads._hanging and time.monotonic() < until:
            time.sleep(0.01)


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def hang(monkeypatch):
    """Let every way to read a file of these names hang."""
    disks = []

    def hang(*names, times=10**6):
        disk = Disk(names, times)
        disks.append(disk)
        for method in ("read", "open", "image", "is_deep"):
            real = getattr(FileSplit, method)

            def slow(split, i, real=real):
                disk.wait(split.path(i).name)
                return real(split, i)

            monkeypatch.setattr(FileSplit, method, slow)
        return disk

    yield hang
    for disk in disks:
        disk.end()


def source_of(folder, **settings) -> Folder:
    source = Folder(path=str(folder), test_fraction=0)
    source.reading = StoreSettings(read_seconds=SECONDS, **settings).reading
    return source


def originals_of(folder, tmp_path, max_bad=0.5, workers=2):
    settings = StoreSettings(pixels="original", max_bad=max_bad, read_seconds=SECONDS)
    return open_originals(source_of(folder), "train", settings, 16, tmp_path / "runs", workers)


def crops_of(originals) -> Tensor:
    height_B, width_B = map(torch.from_numpy, originals.sizes(np.arange(len(originals))))
    zero_B = torch.zeros_like(height_B)
    boxes = Boxes(zero_B, zero_B, height_B, width_B)
    return originals.cut(np.arange(len(originals)), [boxes], [8])[0]


def test_an_original_that_hangs_is_named_given_up_and_counted(folder, tmp_path, hang, caplog):
    originals = originals_of(folder, tmp_path)
    wanted_BCHW = crops_of(originals)
    hang(BROKEN)
    begin = time.monotonic()
    crops_BCHW = crops_of(originals)
    assert 4 * SECONDS <= time.monotonic() - begin < 12 * SECONDS
    same_B = (crops_BCHW == wanted_BCHW).flatten(1).all(1).tolist()
    assert same_B == [row != 3 for row in range(8)]
    lines = [record.getMessage() for record in caplog.records if BROKEN in record.getMessage()]
    assert "3.png: not read after 0.1 s; giving up after 0.3 s (data.read_seconds)" in lines
    assert lines.count("3.png: not read in 0.3 s; retrying") == 3
    assert "cannot read 3.png (not read in 0.3 s, in 4 attempts); replacing it" in lines[-1]
    assert not any(name in caplog.text for name in ("2.png", "4.png"))


def test_squares_of_originals_are_given_up_too(folder, tmp_path, hang):
    originals = originals_of(folder, tmp_path)
    wanted = originals.images[:]
    hang(BROKEN)
    same_B = (originals.images[:] == wanted).reshape(8, -1).all(1).tolist()
    assert same_B == [row != 3 for row in range(8)]


def test_a_read_that_answers_at_the_second_attempt_changes_nothing(folder, tmp_path, hang, caplog):
    originals = originals_of(folder, tmp_path)
    wanted_BCHW = crops_of(originals)
    hang(BROKEN, times=1)
    assert torch.equal(crops_of(originals), wanted_BCHW)
    assert "3.png: not read in 0.3 s; retrying" in caplog.text and "blank" not in caplog.text


def test_what_returns_too_late_is_not_used_and_its_thread_ends(folder, tmp_path, hang):
    others = set(threading.enumerate())
    originals = originals_of(folder, tmp_path)
    wanted_BCHW = crops_of(originals)
    disk = hang(BROKEN, times=1)
    crops_BCHW = crops_of(originals)

    def threads():
        return {t for t in threading.enumerate() if t.name == "cutting"} - others

    assert len(threads()) == originals.workers + 1  # and the abandoned one
    disk.end()
    until = time.monotonic() + 10
    while len(threads()) > originals.workers and time.monotonic() < until:
        time.sleep(0.01)
    assert len(threads()) == originals.workers
    assert torch.equal(crops_BCHW, wanted_BCHW)
    assert torch.equal(crops_of(originals), wanted_BCHW)


def test_more_than_max_bad_that_hang_end_the_run(folder, tmp_path, hang):
    originals = originals_of(folder, tmp_path, max_bad=0.1)
    hang(BROKEN)
    with pytest.raises(UserError, match=r"more than 10.0% .*not read in 0.3 s.*data\.max_bad"):
        crops_of(originals)


def test_a_disk_that_does_not_answer_at_all_ends_the_run_at_once(folder, tmp_path, hang):
    originals = originals_of(folder, tmp_path, workers=20)
    hang(*(f"{row}.png" for row in range(8)))
    begin = time.monotonic()
    with pytest.raises(UserError) as refusal:
        crops_of(originals)
    assert time.monotonic() - begin < 6 * SECONDS
    assert "16 reads have not returned in 0.3 s, the last of " in str(refusal.value)
    assert "\n" not in str(refusal.value) and "data.read_seconds" in str(refusal.value)


def test_the_first_pass_over_headers_gives_up_too(folder, tmp_path, hang, caplog):
    hang(BROKEN)
    originals = originals_of(folder, tmp_path)
    assert originals.bad == [(BROKEN, "not read in 0.3 s, in 4 attempts")]
    assert "3.png: not read after 0.1 s" in caplog.text and len(originals) == 7


def test_storing_gives_up_too(folder, tmp_path, hang, caplog):
    hang(BROKEN)
    store = open_store(source_of(folder), "train", 16, tmp_path / "runs", 0.5)
    assert store.bad == [(BROKEN, "not read in 0.3 s, in 4 attempts")]
    assert "3.png: not read after 0.1 s" in caplog.text and len(store) == 7


def test_storing_too_few_is_refused(folder, tmp_path, hang):
    hang(BROKEN)
    with pytest.raises(UserError, match=r"3.png: not read in 0.3 s, in 4 attempts"):
        open_store(source_of(folder), "train", 16, tmp_path / "runs", 0.05)


def test_a_read_outside_of_a_pool_is_given_up(hang):
    disk = hang()
    with pytest.raises(BadImage, match=r"not read in 0\.3 s, in 4 attempts"):
        retried(lambda _: disk.answers.wait(20), 0, "it", SECONDS)
    assert retried(lambda row: row + 1, 4, "it", SECONDS) == 5


def test_giants_do_not_wait_for_one_that_hangs(folder, tmp_path, hang, monkeypatch):
    originals = originals_of(folder, tmp_path)
    monkeypatch.setattr("ssdistill.data.originals.GIANT_PIXELS", 0)
    wanted_BCHW = crops_of(originals)
    hang(BROKEN)
    crops_BCHW = crops_of(originals)
    same_B = (crops_BCHW == wanted_BCHW).flatten(1).all(1).tolist()
    assert same_B == [row != 3 for row in range(8)]


def test_a_slow_read_in_time_is_not_repeated():
    reads = []

    def slow(row):
        reads.append(row)
        time.sleep(0.15)
        return row

    with AbandoningPool(2, "test") as pool:
        result = pool.map(lambda row: retried(slow, row, str(row), SECONDS), range(4))
    assert result == sorted(reads) == [0, 1, 2, 3]


def test_the_seconds_change_no_hash_and_have_bounds():
    assert SOURCES.schema("cifar10")().model_dump() == (
        SOURCES.schema("cifar10")(read_seconds=7).model_dump()
    )
    assert StoreSettings(read_seconds=7).reading.seconds == 7
    assert StoreSettings().reading.seconds == 120 and StoreSettings().reading.key == []
    for wrong in (0, -1, float("inf"), "x"):
        with pytest.raises(ValueError, match="read_seconds"):
            StoreSettings(read_seconds=wrong)
