"""Label-free agreement of a student with its teacher during training."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from ssdistill.chain.observers import observers_of
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.experiment.sections import DistillSettings
from ssdistill.label_free.agreement import LinearCKA
from ssdistill.label_free.collapse import collapse_metrics
from ssdistill.label_free.features import extract
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.registry import LOSSES
from ssdistill.train import watch
from ssdistill.train.checkpoint import load_checkpoint
from ssdistill.train.loop import CHECKPOINT, Training, fit
from ssdistill.train.observers import Observer
from ssdistill.train.optim import OptimSettings
from ssdistill.train.seeding import seed_generators
from ssdistill.train.selection import Agreement, Selection
from ssdistill.train.watch import AgreementWatch, sample_indices

STEPS, BATCH = 6, 8
NAMES = {f"collapse/sample/{name}" for name in ("std", "effective_rank", "uniformity")}
NAMES |= {"agree/cka"}


class Unlabeled(SimpleNamespace):
    """A store whose labels nobody may ask for."""

    def __len__(self):
        return len(self.images)

    @property
    def labels(self):
        raise AssertionError("a label was read")


@pytest.fixture
def store(make_store):
    return Unlabeled(images=make_store(24).images)


@pytest.fixture
def make_task(make_encoder):
    """``make_task(*seeds)``: a distillation from a teacher, or the networks of one from several."""

    def make(*seeds):
        student = make_encoder(7)
        teachers = {f"t{seed}": make_encoder(seed) for seed in seeds or (0,)}
        if len(teachers) > 1:
            return SimpleNamespace(exported=(student, None), teachers=teachers)
        known = shapes(student, teachers["t0"], 24)
        loss = LOSSES.build(LOSSES.schema("cosine")(kind="cosine"), known)
        return Distiller(student, teachers["t0"], {"loss": loss})

    return make


@pytest.fixture
def frequent(monkeypatch):
    """A training of a few steps is long enough to look every other step."""
    monkeypatch.setattr(watch, "TRAINED_PER_LOOK", 0.6)
    monkeypatch.setattr(watch, "TRAINED_AT_LEAST", 1)


@pytest.fixture
def start(make_task, store):
    """``start(folder, *observers)`` distils, from scratch or from where it was."""

    def start(folder, *observers, generator_seed=0):
        seed_generators(0, "task")
        task = make_task()
        training = Training(
            task=task,
            loader=Loader(store, BATCH, seed=1, num_steps=STEPS),
            recipes=(RECIPES["weak"],) * 2,
            optim=OptimSettings(kind="sgd", lr=0.05),
            seed=2,
            checkpoint_seconds=0,
        )
        seed_generators(generator_seed, "training")
        run = Run(folder, stage="distill", digest="d" * 64, seed=0)
        with Tracker(run, TrackingSettings(wandb="disabled", log_every=1)) as tracker:
            metrics = fit(
                training, Fabric(accelerator="cpu", devices=1), tracker, observers=observers
            )
            tracker.finish(metrics)
        return task, metrics

    return start


def wanted_cka(task, images_NHWC):
    pair = [extract(e, images_NHWC, 16, progress=False) for e in (task.encoder, task.teacher)]
    cka = LinearCKA()
    cka.update(*pair)
    return cka.compute()


def lines_of(folder):
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_metrics(folder)
    ]


def test_what_is_logged_is_agreement_and_metrics_of_the_sample(store, make_task, frequent):
    task = make_task().train()
    found = AgreementWatch(store, 1, 24, seed=0).after_step(0, None, task)
    assert found.keys() == NAMES
    assert found["agree/cka"] == pytest.approx(wanted_cka(task, store.images), rel=1e-9)
    of_sample = collapse_metrics(extract(task.encoder, store.images, 16, progress=False))
    assert found["collapse/sample/std"] == pytest.approx(of_sample["collapse/std"])


def test_a_student_that_is_its_teacher_agrees_entirely(store, make_task):
    task = make_task()
    task.encoder.load_state_dict(task.teacher.state_dict())
    assert Agreement(store, 0).measure(task) == pytest.approx(1, abs=1e-6)


def test_several_teachers_are_one_side_by_side(store, make_task):
    task = make_task(0, 1)
    alone = [SimpleNamespace(exported=task.exported, teachers={n: task.teachers[n]})
             for n in task.teachers]  # fmt: skip
    both = Agreement(store, 0).measure(task)
    low, high = sorted(Agreement(store, 0).measure(one) for one in alone)
    assert low * 0.5 < both <= 1 and both != pytest.approx(low) and both != pytest.approx(high)


def test_the_teacher_is_encoded_once(store, make_task, frequent, monkeypatch):
    task, encoded = make_task(), []
    monkeypatch.setattr(
        watch, "extract", lambda e, *args, **kw: encoded.append(e) or extract(e, *args, **kw)
    )
    observer = AgreementWatch(store, STEPS, BATCH, seed=0)
    for step in range(STEPS):
        observer.after_step(step, None, task)
    assert [e is task.teacher for e in encoded].count(True) == 1
    assert [e is task.encoder for e in encoded].count(True) == 3


@pytest.mark.parametrize("name", ["agreement_watch", "selection"])
def test_a_distillation_that_is_watched_is_the_same_and_resumes_exactly(
    start, store, runs, frequent, name
):
    class Cut(Exception):
        pass

    class Cutter(Observer):
        name = "cutter"

        def after_step(self, step, batch, task):
            if step == 3:
                raise Cut
            return {}

    def observer():
        if name == "selection":
            return Selection(Agreement(store, 0), STEPS, 0.3)
        return AgreementWatch(store, STEPS, BATCH, seed=0)

    start(runs / "alone")
    whole_task, whole = start(runs / "whole", observer())
    mine = NAMES if name == "agreement_watch" else {"select/agreement", "select/step"}
    assert mine <= whole.keys()
    alone, watched = (load_checkpoint(runs / f / CHECKPOINT) for f in ("alone", "whole"))
    assert all(torch.equal(t, watched["task"][k]) for k, t in alone["task"].items())
    unwatched = [
        {k: v for k, v in line.items() if k not in mine} for line in lines_of(runs / "whole")
    ]
    assert unwatched == lines_of(runs / "alone")
    with pytest.raises(Cut):
        start(runs / "cut", observer(), Cutter())
    task, _ = start(runs / "cut", observer(), generator_seed=99)
    assert lines_of(runs / "cut") == lines_of(runs / "whole")
    assert all(torch.equal(t, task.state_dict()[k]) for k, t in whole_task.state_dict().items())


def test_selection_by_agreement_keeps_the_student_that_agreed_best(start, store, runs):
    seen = {}

    class Note(Observer):
        name = "note"

        def after_step(self, step, batch, task):
            seen[step + 1] = (
                wanted_cka(task, store.images),
                copy.deepcopy(task.encoder.state_dict()),
            )
            return {}

    task, metrics = start(runs / "run", Selection(Agreement(store, 0), STEPS, 0.01), Note())
    best = max(seen, key=lambda step: seen[step][0])
    assert metrics["select/step"] == best
    assert metrics["select/agreement"] == pytest.approx(seen[best][0], rel=1e-9)
    assert all(torch.equal(t, seen[best][1][k]) for k, t in task.encoder.state_dict().items())


def test_looks_stay_below_a_hundredth_of_the_work():
    """Encodings of the looks against those of the training, for teachers of any size."""
    store = Unlabeled(images=np.zeros((50_000, 1, 1, 3), np.uint8))
    looked_at = len(store.images[sample_indices(50_000, watch.IMAGES, 0)])
    assert looked_at <= watch.IMAGES
    for num_steps, batch_size in [(10, 64), (200, 256), (150, 512), (900, 64), (40_000, 256)]:
        observer = AgreementWatch(store, num_steps, batch_size, seed=0)
        steps = range(1, num_steps + 1)
        due = [s >= observer.interval and (num_steps - s) % observer.interval == 0 for s in steps]
        looks = sum(due) * observer.looks
        assert looks <= 20 and (looks > 0) == (num_steps * batch_size >= 100 * looked_at)
        for teacher in (1, 3, 10, 1000):
            work = num_steps * batch_size * (3 + teacher)
            assert looked_at * (looks + (looks > 0) * teacher) <= 0.01 * work


def test_nothing_is_seen_of_a_training_too_short_for_it(store, make_task):
    observer = AgreementWatch(store, STEPS, BATCH, seed=0)
    assert all(observer.after_step(step, None, make_task()) == {} for step in range(STEPS))


def test_a_sample_is_spread_evenly_and_chosen_by_the_seed():
    rows = np.arange(4500)
    for seed in range(4):
        chosen = rows[sample_indices(4500, 2000, seed)]
        assert len(chosen) == 1500 and set(np.diff(chosen)) == {3} and chosen[0] == seed % 3
        assert chosen.base is rows
    assert len(rows[sample_indices(4500, 4500, 7)]) == 4500
    assert len(rows[:2001][sample_indices(2001, 2000, 1)]) == 1000


@pytest.mark.parametrize("select", ["last", "rankme", "lidar", "agreement"])
def test_no_label_is_read_by_what_looks_on(start, store, make_task, runs, frequent, select):
    losses = {"loss": {"kind": "cosine"}}
    loader = Loader(store, BATCH, seed=1, num_steps=STEPS)
    observers = observers_of(
        SimpleNamespace(task=make_task(), loader=loader, strategy="ddp"),
        DistillSettings(steps=STEPS, losses=losses, select=select, select_every=0.3),
        TrackingSettings(),
        SimpleNamespace(seed=0),
        SimpleNamespace(
            train=store,
            source=SimpleNamespace(default_recipe=None),
            experiment=SimpleNamespace(watched=None),
        ),
        torch.device("cpu"),
    )
    assert len(observers) == 1 + (select != "last")
    _, metrics = start(runs / "run", *observers)
    assert metrics.keys() >= NAMES
    assert ("select/step" in metrics) == (select != "last")


def test_who_does_not_want_to_watch_does_not(store, make_task):
    found = observers_of(
        SimpleNamespace(task=make_task(), loader=SimpleNamespace(num_steps=STEPS), strategy="ddp"),
        SimpleNamespace(select="last"),
        TrackingSettings(agreement=False),
        SimpleNamespace(seed=0),
        SimpleNamespace(train=store, experiment=SimpleNamespace(watched=None)),
        torch.device("cpu"),
    )
    assert found == []
