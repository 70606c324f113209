"""Waiting for data: what fraction of the steps it takes, and when that is said."""

from types import SimpleNamespace

import numpy as np
import pytest

from ssdistill.data import loader as loader_module
from ssdistill.data.loader import Loader
from ssdistill.train import waiting as waiting_module
from ssdistill.train.waiting import WINDOW, Waiting


class Images:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(waiting_module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def batches(self, waits):
        for wait in waits:
            self.now += wait
            yield None


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(waiting_module.console, "print", lambda text, **_: said.append(text))
    return said


@pytest.fixture
def train(monkeypatch):
    clock = Clock(monkeypatch)

    def train(waits, work=0.8, remedy="raise device.workers"):
        waiting = Waiting("student", remedy)
        for wait, _ in zip(waits, waiting.over(clock.batches(waits)), strict=True):
            clock.now += work
            waiting.step(wait + work)
            clock.now += 5.0  # a measurement between two steps is neither
        return waiting

    return train


def test_the_share_is_that_of_the_last_steps(train, lines):
    assert train([9.0, 0.2, 0.2]).share == pytest.approx(0.2)
    assert train([9.0] + [0.2] * 10 + [0.0] * WINDOW).share == 0
    assert train([9.0]).share == 0  # nothing was read ahead of it


def test_too_much_of_it_is_said_once_with_what_helps(train, lines):
    train([0.2] * (3 * WINDOW))
    assert lines == [
        "  student: 20% of the last 50 steps is waiting for images; raise device.workers"
    ]


@pytest.mark.parametrize(
    ("waits", "remedy"),
    [([0.2] * WINDOW, "help"), ([0.08] * 200, "help"), ([0.2] * 200, "")],
    ids=["too few steps", "little", "nothing helps"],
)
def test_nothing_is_said_without_need(train, lines, waits, remedy):
    train(waits, remedy=remedy)
    assert lines == []


def test_images_in_memory_have_no_remedy(monkeypatch):
    store = Images(np.zeros((8, 4, 4, 3), np.uint8))
    assert Loader(store, 4, 0, 9).remedy == ""
    monkeypatch.setattr(loader_module, "RESIDENT_BYTES", 10)
    assert Loader(store, 4, 0, 9, ahead=3).remedy.startswith("raise device.prefetch (now 3)")
