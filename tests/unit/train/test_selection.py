"""Selecting checkpoints without labels: by rank, LiDAR or agreement."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError
from torch import nn

from ssdistill.chain import observers as chain_observers
from ssdistill.chain.observers import observers_of
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.data.views import eval_view, make_view
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.online_probe import OnlineProbe
from ssdistill.experiment.sections import DistillSettings
from ssdistill.label_free.lidar import lidar
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.registry import METHODS
from ssdistill.train import selection
from ssdistill.train.loop import Training, fit
from ssdistill.train.optim import OptimSettings
from ssdistill.train.selection import Agreement, EffectiveRank, Lidar, Selection
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

STEPS = 10
CONSTANT = OptimSettings(
    kind="sgd", lr=1.0, momentum=0, weight_decay=0, warmup=0, schedule="constant"
)


class Counting(Task):
    """Adds one to every projector weight at each step, and leaves the encoder alone."""

    def __init__(self, encoder, projector=True):
        super().__init__()
        self.encoder, self.num_views = encoder.requires_grad_(False), 1
        self.counter = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.counter.weight)
        self.projector = self.counter if projector else None

    @property
    def exported(self):
        return self.encoder, self.projector

    def weights_at(self, step, num_steps):
        return {"count": 1.0}

    def forward(self, views, batch):
        self.last_embeddings = [self.encoder(views[0]).embedding_BD.detach()]
        return {"count": -self.counter.weight.sum()}


def by_rank(store, num_steps, every, seed=0):
    return Selection(EffectiveRank(store, seed), num_steps, every)


def scripted(monkeypatch, ranks):
    """Ranks as told, in the order of the measurements."""
    told = iter(ranks)
    monkeypatch.setattr(selection, "effective_rank", lambda z_ND: next(told))


def told(monkeypatch, store, ranks, task, every=0.2):
    """The metrics at the end of STEPS steps with these ranks, and the observer."""
    scripted(monkeypatch, ranks)
    chosen = by_rank(store, STEPS, every)
    for step in range(STEPS):
        with torch.no_grad():
            task.counter.weight += 1
        found = chosen.after_step(step, None, task)
    assert found == chosen.after_training(task)
    return found, chosen


@pytest.mark.parametrize(
    ("ranks", "step"),
    [
        ((1, 2, 3, 4, 5), 10),
        ((1, 5, 3, 4, 2), 4),
        ((9, 5, 3, 4, 2), 2),
        ((1, 5, 5, 5, 5), 4),
        ((float("nan"), 1, float("nan"), 0.5, float("nan")), 4),
    ],
)
def test_the_weights_of_the_largest_rank_come_back(
    monkeypatch, make_store, make_encoder, ranks, step
):
    task = Counting(make_encoder())
    found, _ = told(monkeypatch, make_store(), ranks, task)
    assert found == {"select/effective_rank": np.nanmax(ranks), "select/step": step}
    assert task.projector.weight.item() == step


def test_the_encoder_comes_back_with_its_buffers(monkeypatch, make_store, make_encoder):
    task, store = Counting(make_encoder()), make_store()
    scripted(monkeypatch, (3, 2))
    chosen = by_rank(store, 2, 0.5)
    chosen.after_step(0, None, task)
    kept = {name: t.clone() for name, t in task.encoder.state_dict().items()}
    with torch.no_grad():
        for tensor in task.encoder.state_dict().values():
            tensor += 1
    chosen.after_step(1, None, task)
    chosen.after_training(task)
    for name, tensor in task.encoder.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_ranks_that_are_no_numbers_choose_nothing(monkeypatch, make_store, make_encoder):
    task = Counting(make_encoder())
    found, _ = told(monkeypatch, make_store(), [float("nan")] * 5, task)
    assert found == {}
    assert task.projector.weight.item() == STEPS


def test_a_task_without_a_projector_keeps_its_encoder(monkeypatch, make_store, make_encoder):
    task = Counting(make_encoder(), projector=False)
    _, chosen = told(monkeypatch, make_store(), (1, 2, 3, 4, 5), task)
    assert chosen.weights.keys() == {"encoder"}


@pytest.mark.parametrize(
    ("every", "num_steps", "wanted"),
    [(0.2, 10, [2, 4, 6, 8, 10]), (0.3, 10, [3, 6, 9, 10]), (0.01, 3, [1, 2, 3]), (0.9, 2, [2])],
)
def test_it_measures_every_share_and_at_the_end(
    monkeypatch, make_store, make_encoder, every, num_steps, wanted
):
    task, measured = Counting(make_encoder()), []
    chosen = by_rank(make_store(), num_steps, every)
    for step in range(num_steps):
        monkeypatch.setattr(
            chosen.criterion, "measure", lambda task, step=step: measured.append(step + 1) or 1.0
        )
        chosen.after_step(step, None, task)
    assert measured == wanted


def test_the_rank_is_that_of_evaluation_views_in_eval_mode(make_store, make_encoder):
    store, task = make_store(30), Counting(make_encoder()).train()
    found = by_rank(store, 1, 0.5).after_step(0, None, task)
    task.eval()
    with torch.no_grad():
        z_ND = task.encoder(eval_view(torch.from_numpy(store.images), 16)).embedding_BD
    singular = np.linalg.svd(z_ND.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    rank = np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum())
    assert found["select/effective_rank"] == pytest.approx(rank, rel=1e-4)


def test_measuring_leaves_modes_buffers_and_generators_alone(make_store, make_encoder):
    task = Counting(make_encoder()).train()
    task.encoder.net.bn1.eval()
    modes = [module.training for module in task.modules()]
    buffers = {name: t.clone() for name, t in task.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    by_rank(make_store(), 1, 0.5).after_step(0, None, task)
    assert [module.training for module in task.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, buffers[name]), name


def test_lidar_is_that_of_the_same_views_at_every_look(make_store, make_encoder):
    store, task = make_store(30), Counting(make_encoder()).train()
    chosen = Selection(Lidar(store, 0, RECIPES["weak"]), 2, 0.5)
    found = [chosen.after_step(step, None, task)["select/lidar"] for step in (0, 1)]
    assert found[0] == found[1] and chosen.step == 1
    task.eval()
    draw = {"seed": 0, "epoch": 0, "index_B": torch.arange(30), "size": 16}
    images_BHWC = torch.from_numpy(store.images)
    with torch.no_grad():
        views = [make_view(images_BHWC, RECIPES["weak"], view=v, **draw) for v in range(10)]
        z_VND = torch.stack([task.encoder(view).embedding_BD for view in views])
    assert found[0] == pytest.approx(lidar(z_VND), rel=1e-4)


def test_large_stores_are_looked_at_in_part(monkeypatch, make_store):
    monkeypatch.setattr(selection, "IMAGES", 10)
    monkeypatch.setattr(selection, "LIDAR_IMAGES", 6)
    store = make_store(24)
    looked_at = Lidar(store, 5, RECIPES["weak"])
    assert looked_at.index_N.tolist() == [1, 5, 9, 13, 17, 21]
    assert np.array_equal(looked_at.images_NHWC, store.images[1::4])
    assert np.array_equal(EffectiveRank(store, 5).images_NHWC, store.images[2::3])


def test_agreement_needs_a_teacher(make_store, make_encoder):
    with pytest.raises(UserError, match="this task has no teacher"):
        Agreement(make_store(), 0).measure(Counting(make_encoder()))


def test_a_training_ends_with_the_weights_that_were_chosen(
    monkeypatch, make_store, make_encoder, runs
):
    scripted(monkeypatch, (1, 7, 3, 2, 1))
    store, task = make_store(), Counting(make_encoder())
    training = Training(
        task, Loader(store, 8, seed=1, num_steps=STEPS), (RECIPES["weak"],), CONSTANT, seed=2
    )
    run = Run(runs / "run", stage="pretrain", digest="d" * 64, seed=0)
    with Tracker(run, TrackingSettings(wandb="disabled", gradients_every=None)) as tracker:
        metrics = fit(
            training,
            Fabric(accelerator="cpu", devices=1),
            tracker,
            observers=[by_rank(store, STEPS, 0.2)],
        )
        tracker.finish(metrics)
    assert (metrics["select/effective_rank"], metrics["select/step"]) == (7, 4)
    assert task.projector.weight.item() == 4


@pytest.mark.parametrize("kind", ["method", "distillation"])
def test_what_selects_nothing_is_no_part_of_a_stages_identity(kind):
    given = {"steps": 3} | ({} if kind == "method" else {"losses": {"feature": {"kind": "mse"}}})
    schema = METHODS.schema("simclr") if kind == "method" else DistillSettings
    names = {"select", "select_every"}
    idle = schema(**given).model_dump(mode="json", exclude={"views"})
    assert not names & idle.keys()
    assert schema(**given, select_every=0.3).model_dump(mode="json", exclude={"views"}) == idle
    chosen = schema(**given, select="rankme", select_every=0.3)
    dumped = chosen.model_dump(mode="json", exclude={"views"})
    assert {name: dumped[name] for name in names} == {"select": "rankme", "select_every": 0.3}
    assert {name: value for name, value in dumped.items() if name not in names} == idle
    assert schema.model_validate(dumped) == chosen
    assert schema(**given, select="lidar").select == "lidar"


def test_only_what_has_a_teacher_selects_by_agreement():
    losses = {"feature": {"kind": "mse"}}
    assert DistillSettings(steps=3, losses=losses, select="agreement").select == "agreement"
    for schema in (METHODS.schema("simclr"), TrainSettings):
        with pytest.raises(ValidationError, match="select"):
            schema(steps=3, select="agreement")


@pytest.fixture
def make_observers(make_store, make_encoder, monkeypatch):
    """``asked(select, online_probe, has_labels, judged)``: the observers, and what is printed."""

    def make_observers(select="last", online_probe=False, has_labels=True, judged=True):
        store, printed = make_store(), []
        if has_labels:
            store.labels = np.arange(len(store)) % 2
        monkeypatch.setattr(
            chain_observers.console, "print", lambda text, **style: printed.append(text)
        )
        observers = observers_of(
            SimpleNamespace(
                task=Counting(make_encoder()),
                loader=SimpleNamespace(num_steps=STEPS),
                strategy="ddp",
            ),
            SimpleNamespace(select=select, select_every=0.2),
            TrackingSettings(online_probe=online_probe),
            SimpleNamespace(seed=1),
            SimpleNamespace(
                train=store,
                source=SimpleNamespace(has_labels=has_labels, default_recipe="digits"),
                experiment=SimpleNamespace(
                    evaluate=SimpleNamespace() if judged else None, watched=None
                ),
            ),
            torch.device("cpu"),
        )
        return observers, printed

    return make_observers


def test_nothing_looks_on_unless_asked_to(make_observers):
    assert make_observers() == ([], [])


def test_a_stage_gets_the_observers_it_asks_for(make_observers):
    kinds = {"rankme": EffectiveRank, "lidar": Lidar, "agreement": Agreement}
    for select, criterion in kinds.items():
        (observer,), printed = make_observers(select=select)
        assert isinstance(observer, Selection) and printed == []
        assert isinstance(observer.criterion, criterion)
        assert (observer.interval, observer.num_steps) == (2, STEPS)
    assert make_observers(select="lidar")[0][0].criterion.recipe == RECIPES["digits"]
    (observer,), printed = make_observers(online_probe=True)
    assert isinstance(observer, OnlineProbe) and printed == []
    assert observer.classifier.in_features == 16 and observer.classifier.out_features == 2


@pytest.mark.parametrize(
    ("missing", "reason"), [("has_labels", "the data has no labels"), ("judged", "evaluate=null")]
)
def test_without_labels_there_is_no_online_probe_but_a_notice(make_observers, missing, reason):
    observers, (notice,) = make_observers(online_probe=True, **{missing: False})
    assert observers == []
    assert reason in notice
