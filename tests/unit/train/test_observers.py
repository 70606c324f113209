"""Observers of the loop see every step, resume exactly and change nothing."""

import copy

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.online_probe import OnlineProbe
from ssdistill.pretrain.byol import BYOL, BYOLPredictor, BYOLProjector
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.checkpoint import load_checkpoint
from ssdistill.train.loop import CHECKPOINT, Training, fit
from ssdistill.train.observers import Observer
from ssdistill.train.optim import OptimSettings
from ssdistill.train.seeding import seed_generators
from ssdistill.train.selection import EffectiveRank, Lidar, Selection

STEPS = 6
HEADS = {
    "projector": BYOLProjector(hidden_dim=16, output_dim=8),
    "predictor": BYOLPredictor(hidden_dim=16),
}


class Dropping(BYOL):
    """Draws from torch's generator at every step, so that a draw of someone else's shows."""

    def forward(self, views, batch):
        return super().forward([view * torch.rand_like(view) for view in views], batch)


class Cut(Exception):
    pass


class Cutter(Observer):
    """Ends the training before the checkpoint of a step is written."""

    name = "cutter"

    def __init__(self, at):
        self.at = at

    def after_step(self, step, batch, task):
        if step == self.at:
            raise Cut
        return {}


@pytest.fixture
def store(make_store):
    store = make_store()
    store.labels = np.arange(len(store)) % 3
    return store


@pytest.fixture
def observers(store):
    """``observers[name]()``: a fresh observer."""
    return {
        "online_probe": lambda: OnlineProbe(store, 16),
        "rankme": lambda: Selection(EffectiveRank(store, 1), STEPS, 0.3),
        "lidar": lambda: Selection(Lidar(store, 1, RECIPES["weak"]), STEPS, 0.3),
    }


@pytest.fixture
def start(make_encoder, store):
    """``start(folder, *observers)`` trains BYOL, from scratch or from where it was."""

    def start(folder, *observers, generator_seed=0):
        task = Dropping(make_encoder(), **HEADS)
        training = Training(
            task=task,
            loader=Loader(store, 8, seed=1, num_steps=STEPS),
            recipes=(RECIPES["weak"],) * 2,
            optim=OptimSettings(kind="sgd", lr=0.05),
            seed=2,
            checkpoint_seconds=0,
        )
        seed_generators(generator_seed, "training")
        run = Run(folder, stage="pretrain", digest="d" * 64, seed=0)
        fabric = Fabric(accelerator="cpu", devices=1)
        tracking = TrackingSettings(wandb="disabled", log_every=1)
        with Tracker(run, tracking) as tracker:
            metrics = fit(training, fabric, tracker, observers=observers)
            tracker.finish(metrics)
        return task, without_clock(metrics)

    return start


def without_clock(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def lines_of(folder):
    return [without_clock(line) for line in read_metrics(folder)]


def without(names, lines):
    return [{k: v for k, v in line.items() if k.split("/")[0] not in names} for line in lines]


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], dict):
            assert_equal_states(a[name], b[name])
        elif isinstance(a[name], torch.Tensor):
            assert torch.equal(a[name], b[name]), name
        else:
            assert a[name] == b[name], name


@pytest.mark.parametrize("name", ["online_probe", "rankme", "lidar"])
def test_a_training_that_is_watched_is_the_same_training(start, observers, runs, name):
    start(runs / "alone")
    observer = observers[name]()
    start(runs / "watched", observer)
    alone, watched = (load_checkpoint(runs / f / CHECKPOINT) for f in ("alone", "watched"))
    # Weights, buffers and momentum network of the last step; what training would draw next.
    for part in ("task", "random"):
        assert_equal_states(alone[part], watched[part])
    lines = lines_of(runs / "watched")
    assert without(("probe", "select"), lines) == lines_of(runs / "alone")
    assert lines != lines_of(runs / "alone")
    assert watched["observers"].keys() == {observer.name} and alone["observers"] == {}


def test_the_online_probe_leaves_the_trained_encoder_as_it_is(start, observers, runs):
    alone, _ = start(runs / "alone")
    watched, metrics = start(runs / "watched", observers["online_probe"]())
    assert_equal_states(alone.state_dict(), watched.state_dict())
    assert 0 <= metrics["probe/online/top1"] <= 100


@pytest.mark.parametrize("name", ["online_probe", "rankme", "lidar"])
def test_an_observer_resumes_exactly(start, observers, runs, name):
    whole_task, whole = start(runs / "whole", observers[name]())
    with pytest.raises(Cut):
        start(runs / "cut", observers[name](), Cutter(4))
    assert load_checkpoint(runs / "cut" / CHECKPOINT)["step"] == 4
    task, resumed = start(runs / "cut", observers[name](), generator_seed=99)
    assert resumed == whole
    assert lines_of(runs / "cut") == lines_of(runs / "whole")
    assert_equal_states(task.state_dict(), whole_task.state_dict())
    kept = [load_checkpoint(runs / f / CHECKPOINT)["observers"] for f in ("whole", "cut")]
    assert_equal_states(*kept)


def test_a_probe_can_join_and_leave_between_two_runs(start, observers, runs):
    _, alone = start(runs / "alone")
    with pytest.raises(Cut):
        start(runs / "joined", Cutter(3))
    _, joined = start(runs / "joined", observers["online_probe"]())
    with pytest.raises(Cut):
        start(runs / "left", observers["online_probe"](), Cutter(3))
    _, left = start(runs / "left")
    assert left == alone
    assert joined.pop("probe/online/top1") >= 0
    assert joined == alone
    assert ["probe/online/top1" in line for line in lines_of(runs / "left")] == [True] * 3 + [
        False
    ] * 3


def test_a_checkpoint_from_before_observers_can_be_resumed(start, observers, runs):
    with pytest.raises(Cut):
        start(runs / "run", Cutter(3))
    state = load_checkpoint(runs / "run" / CHECKPOINT)
    del state["observers"]
    torch.save(state, runs / "run" / CHECKPOINT)
    _, metrics = start(runs / "run", observers["online_probe"]())
    assert "probe/online/top1" in metrics


def test_a_probe_of_other_classes_is_named_at_resume(start, store, observers, runs):
    with pytest.raises(Cut):
        start(runs / "run", observers["online_probe"](), Cutter(3))
    store.labels = np.arange(len(store)) % 4
    with pytest.raises(UserError, match="does not fit this network"):
        start(runs / "run", observers["online_probe"]())


def test_a_checkpoint_from_when_rank_was_the_only_criterion_is_read(observers):
    chosen = observers["rankme"]()
    chosen.load_state_dict({"rank": 3.5, "step": 4, "weights": {}})
    assert (chosen.value, chosen.step) == (3.5, 4)


class Note(Observer):
    """Writes down when it is called, and what the task's weights were."""

    name = "note"

    def __init__(self):
        self.seen, self.weights = [], []

    def after_step(self, step, batch, task):
        assert batch.step == step
        self.seen.append(step)
        self.weights.append(copy.deepcopy(task.state_dict()))
        return {"note/step": torch.tensor(step)}

    def after_training(self, task):
        self.seen.append("end")
        return {"note/end": 1.0}


def test_an_observer_sees_every_step_once_weights_have_moved(start, runs):
    note = Note()
    task, metrics = start(runs / "run", note)
    assert note.seen == [*range(STEPS), "end"]
    assert metrics["note/end"] == 1 and metrics["note/step"] == STEPS - 1
    assert [line["note/step"] for line in lines_of(runs / "run")] == list(range(STEPS))
    assert_equal_states(note.weights[-1], task.state_dict())
    assert not torch.equal(*(w["projector.layers.0.weight"] for w in note.weights[:2]))


def test_a_finished_training_asks_its_observers_again_after_a_resume(start, observers, runs):
    task, metrics = start(runs / "run", observers["rankme"]())
    again, repeated = start(runs / "run", observers["rankme"]())
    assert repeated == metrics
    assert_equal_states(again.state_dict(), task.state_dict())
