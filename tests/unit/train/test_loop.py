import copy
import json
import math
import os
import signal
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from ssdistill.chain import arithmetic
from ssdistill.chain.arithmetic import choose_arithmetic
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.errors import UserError
from ssdistill.losses import LossSettings
from ssdistill.pretrain.byol import BYOL, BYOLPredictor, BYOLProjector
from ssdistill.pretrain.simclr import SimCLR, SimCLRProjector
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.registry import LOSSES
from ssdistill.train import guard
from ssdistill.train.checkpoint import load_checkpoint
from ssdistill.train.loop import CHECKPOINT, Training, fit
from ssdistill.train.optim import OptimSettings, learning_rate
from ssdistill.train.progress import TrainingProgress
from ssdistill.train.seeding import seed_generators
from ssdistill.train.settings import DeviceSettings
from ssdistill.train.state import State
from ssdistill.train.task import Task

OPTIM = OptimSettings(kind="sgd", lr=0.05, clip_grad_norm=1.0)
STEPS = 6


class Noisy(Task):
    """Draws from torch's generator at every step, as dropout does."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.num_views = encoder, 1

    def weights_at(self, step, num_steps):
        return {"feature": 1.0}

    def forward(self, views, batch):
        z_BD = self.encoder(views[0]).embedding_BD
        self.last_embeddings = [z_BD.detach()]
        return {"feature": (z_BD - torch.rand_like(z_BD)).square().mean()}


class Scripted(Task):
    """Two losses of given values; embeddings alive or collapsed as told, by step."""

    def __init__(self, encoder, values=(), alive=None, weights=(1.0, 1.0)):
        super().__init__()
        self.encoder, self.num_views = encoder, 1
        self.weights = dict(zip(("feature", "similarity"), weights, strict=True))
        self.parameter = nn.Parameter(torch.ones(3))
        self.values, self.alive, self.after = values, alive, []

    def forward(self, views, batch):
        spread = 1.0 if self.alive is None or self.alive(batch.step) else 0.0
        noise = torch.randn(len(batch.index_B), 4, generator=torch.Generator().manual_seed(1))
        self.last_embeddings = [1.0 + spread * noise]
        scale = self.parameter.sum() / 3
        return {name: scale * v for name, v in zip(self.weights, self.values, strict=True)}

    def weights_at(self, step, num_steps):
        return self.weights

    def after_step(self, step, num_steps):
        self.after.append((step, num_steps))


class Watched(Tracker):
    """Calls ``hook(step)`` once a line is written."""

    def __init__(self, run, hook, log_every):
        super().__init__(run, TrackingSettings(wandb="disabled", log_every=log_every))
        self.hook = hook

    def log(self, step, metrics, epoch=None):
        super().log(step, metrics, epoch)
        self.hook(step)


HEADS = {
    "projector": BYOLProjector(hidden_dim=16, output_dim=8),
    "predictor": BYOLPredictor(hidden_dim=16),
}

TASKS = {
    "noisy": Noisy,
    "simclr": lambda encoder: SimCLR(encoder, projector=SimCLRProjector(output_dim=8)),
    "byol": lambda encoder: BYOL(encoder, **HEADS),
}


@pytest.fixture
def start(make_encoder, make_store):
    """``start(folder, task)`` trains ``task`` in ``folder``, from scratch or from where it was."""

    def start(
        folder,
        task="noisy",
        hook=lambda step: None,
        steps=STEPS,
        optim=OPTIM,
        checkpoint_seconds=1e9,
        log_every=1,
        generator_seed=0,
        on_first_views=lambda views: None,
        precision="32-true",
        recipes=None,
        batch_size=8,
    ):
        if isinstance(task, str):
            task = TASKS[task](make_encoder())
        training = Training(
            task=task,
            loader=Loader(make_store(), batch_size, seed=1, num_steps=steps),
            recipes=recipes or (RECIPES["weak"],) * task.num_views,
            optim=optim,
            seed=2,
            checkpoint_seconds=checkpoint_seconds,
        )
        seed_generators(generator_seed, "training")
        run = Run(folder, stage="pretrain", digest="d" * 64, seed=0)
        with Watched(run, hook, log_every) as tracker:
            metrics = fit(
                training,
                Fabric(accelerator="cpu", devices=1, precision=precision),
                tracker,
                on_first_views,
            )
            tracker.finish(metrics)
        return task, metrics

    return start


class Killed(Exception):
    pass


def kill_at(wanted):
    def hook(step):
        if step == wanted:
            raise Killed

    return hook


def interrupt_at(wanted, times=1):
    def hook(step):
        if step == wanted:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return hook


def lines_of(folder):
    """The record without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(folder)
    ]


def assert_equal(a, b):
    """Bit for bit, whatever the nesting."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def assert_same_outcome(a, b):
    """Weights, optimizer, generators, step and record."""
    states = [load_checkpoint(folder / CHECKPOINT) for folder in (a, b)]
    for state in states:
        assert len(state.pop("durations")) == state["step"] == STEPS
        for name in ("time/images_per_s", "time/waiting"):
            del state["metrics"][name]
    assert_equal(*states)
    assert lines_of(a) == lines_of(b)
    assert [line["step"] for line in read_metrics(b)] == list(range(STEPS))


@pytest.mark.parametrize("task", TASKS)
def test_a_killed_training_ends_as_if_it_had_not_been(start, runs, task):
    # At every step a checkpoint, so that the last one tells the whole final state.
    _, whole = start(runs / "whole", task, checkpoint_seconds=0)
    with pytest.raises(Killed):
        start(runs / "cut", task, hook=kill_at(3), checkpoint_seconds=0)
    assert load_checkpoint(runs / "cut" / CHECKPOINT)["step"] == 3
    assert [line["step"] for line in read_metrics(runs / "cut")] == [0, 1, 2, 3]
    _, resumed = start(runs / "cut", task, checkpoint_seconds=0, generator_seed=99)
    assert_same_outcome(runs / "whole", runs / "cut")
    assert {k: v for k, v in resumed.items() if not k.startswith("time/")} == {
        k: v for k, v in whole.items() if not k.startswith("time/")
    }


def test_another_seed_gives_another_training(start, runs):
    """What the comparison above would be worth if nothing were random."""
    start(runs / "a")
    start(runs / "b", generator_seed=99)
    assert lines_of(runs / "a") != lines_of(runs / "b")


def test_ctrl_c_saves_a_whole_step_and_the_next_run_ends_as_if_it_had_not_been(start, runs):
    handler = signal.getsignal(signal.SIGINT)
    _, whole = start(runs / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(runs / "cut", hook=interrupt_at(2))
    assert signal.getsignal(signal.SIGINT) is handler
    assert json.loads((runs / "cut" / "run.json").read_text())["status"] == "interrupted"
    assert load_checkpoint(runs / "cut" / CHECKPOINT)["step"] == 3
    assert [line["step"] for line in read_metrics(runs / "cut")] == [0, 1, 2]
    _, resumed = start(runs / "cut", generator_seed=99)
    assert lines_of(runs / "cut") == lines_of(runs / "whole")
    assert resumed["loss/total"] == whole["loss/total"]


def test_ctrl_c_in_the_last_step_loses_no_number(start, runs):
    _, whole = start(runs / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(runs / "cut", hook=interrupt_at(STEPS - 1))
    _, resumed = start(runs / "cut")
    assert resumed.keys() == whole.keys()
    assert resumed["loss/total"] == whole["loss/total"]


def test_a_second_ctrl_c_stops_at_once(start, runs):
    with pytest.raises(KeyboardInterrupt):
        start(runs / "cut", hook=interrupt_at(2, times=2))
    assert not (runs / "cut" / CHECKPOINT).exists()


def test_no_checkpoint_is_written_before_its_time(start, runs):
    start(runs / "run", checkpoint_seconds=1e9)
    assert not (runs / "run" / CHECKPOINT).exists()


def test_a_checkpoint_of_another_network_is_named(start, runs):
    start(runs / "run", "simclr", checkpoint_seconds=0)
    with pytest.raises(UserError, match="does not fit this network") as caught:
        start(runs / "run", "byol")
    assert str(runs / "run" / CHECKPOINT) in str(caught.value)


def test_the_total_is_the_weighted_sum_and_every_loss_is_logged(start, make_encoder, runs):
    start(runs / "run", Scripted(make_encoder(), (2.0, 5.0), weights=(1.0, 0.1)), steps=2)
    first = lines_of(runs / "run")[0]
    assert first["loss/feature"] == pytest.approx(2.0)
    assert first["loss/similarity"] == pytest.approx(5.0)
    assert first["weighted/similarity"] == pytest.approx(0.5)
    assert first["loss/total"] == pytest.approx(2.5)
    assert first["grad/norm"] == pytest.approx(2.5 / math.sqrt(3), rel=1e-5)
    assert {"collapse/std", "collapse/effective_rank"} <= first.keys()


def distiller(encoder, views):
    """A distiller that encodes ``views`` of the views it is given."""
    teacher = copy.deepcopy(encoder)
    loss = LOSSES.build(LOSSES.schema("mse")(kind="mse"), shapes(encoder, teacher, 24))
    pairs = tuple((i, i) for i in range(views))
    return Distiller(encoder, teacher, {"feature": loss}, {"feature": LossSettings(pairs=pairs)})


@pytest.mark.parametrize("kind", ["simclr", "byol", "distiller"])
def test_the_logged_alignment_is_that_of_two_views_of_each_image(start, make_encoder, runs, kind):
    task = distiller(make_encoder(), 2) if kind == "distiller" else kind
    start(runs / "same", task, steps=1, recipes=(RECIPES["eval"],) * 2)
    task = distiller(make_encoder(), 2) if kind == "distiller" else kind
    start(runs / "other", task, steps=1, recipes=(RECIPES["eval"], RECIPES["strong"]))
    same, other = (lines_of(runs / name)[0] for name in ("same", "other"))
    assert same["collapse/alignment"] == pytest.approx(0, abs=1e-9)
    assert other["collapse/alignment"] > 1e-3


def test_one_encoded_view_has_every_metric_but_alignment(start, make_encoder, runs):
    task = distiller(make_encoder(), 1)
    start(runs / "run", task, steps=1, recipes=(RECIPES["weak"],) * 2)
    found = {name for name in lines_of(runs / "run")[0] if name.startswith("collapse/")}
    assert found == {"collapse/std", "collapse/effective_rank", "collapse/uniformity"}


def test_batches_of_one_image_are_trained_on_without_their_spread(start, make_encoder, runs):
    task = distiller(make_encoder(), 1)
    start(runs / "run", task, steps=2, recipes=(RECIPES["weak"],) * 2, batch_size=1)
    lines = lines_of(runs / "run")
    assert len(lines) == 2 and "loss/total" in lines[-1]
    assert not any(name.startswith("collapse/") for name in lines[-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(start, make_encoder, runs, value):
    with pytest.raises(UserError, match=f"is {value} at step 0: lower optim.lr") as caught:
        start(runs / "run", Scripted(make_encoder(), (1.0, value)))
    assert "device.precision=fp32" in str(caught.value)
    assert json.loads((runs / "run" / "run.json").read_text())["status"] == "failed"


@pytest.fixture
def every_warning():
    """PyTorch says some things once in a process, which another test may have been."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def test_what_is_logged_is_no_part_of_the_graph(start, runs, every_warning):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Converting a tensor with requires_grad")
        start(runs / "run")


def test_of_several_losses_the_one_that_is_not_finite_is_named(start, make_encoder, runs):
    with pytest.raises(UserError, match=r"^loss/similarity is nan"):
        start(runs / "run", Scripted(make_encoder(), (1.0, float("nan"))))


def test_a_collapsed_embedding_stops_the_training(start, make_encoder, runs, monkeypatch):
    monkeypatch.setattr(guard, "COLLAPSE_PATIENCE", 3)
    task = Scripted(make_encoder(), (1.0, 1.0), alive=lambda step: step < 2)
    with pytest.raises(UserError, match="the embedding has collapsed at step 4"):
        start(runs / "run", task)


def test_an_embedding_that_recovers_is_left_alone(start, make_encoder, runs, monkeypatch):
    monkeypatch.setattr(guard, "COLLAPSE_PATIENCE", 3)
    start(runs / "run", Scripted(make_encoder(), (1.0, 1.0), alive=lambda step: step % 3 == 2))
    assert len(read_metrics(runs / "run")) == STEPS


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_scheduled_rate_is_used_and_logged(start, make_encoder, runs, schedule):
    optim = OptimSettings(
        kind="sgd", lr=0.1, momentum=0, weight_decay=0, warmup=0.4, schedule=schedule
    )
    task, _ = start(runs / "run", Scripted(make_encoder(), (3.0, 0.0)), optim=optim)
    rates = [learning_rate(optim, step, STEPS) for step in range(STEPS)]
    assert [line["optim/lr"] for line in read_metrics(runs / "run")] == pytest.approx(rates)
    # The gradient of every parameter is 3 / 3 = 1.
    assert torch.allclose(task.parameter, torch.full((3,), 1 - sum(rates)), atol=1e-6)


def test_gradients_are_clipped_to_the_limit_and_logged_unclipped(start, make_encoder, runs):
    optim = OptimSettings(
        kind="sgd",
        lr=1.0,
        momentum=0,
        weight_decay=0,
        warmup=0,
        schedule="constant",
        clip_grad_norm=0.01,
    )
    task, _ = start(runs / "run", Scripted(make_encoder(), (30.0, 0.0)), optim=optim, steps=1)
    assert (task.parameter - 1).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert read_metrics(runs / "run")[0]["grad/norm"] == pytest.approx(10 * math.sqrt(3))


def test_gradients_are_clipped_at_steps_that_are_not_logged(start, make_encoder, runs):
    constant = {"momentum": 0, "weight_decay": 0, "warmup": 0, "schedule": "constant"}
    optim = OptimSettings(kind="sgd", lr=1.0, clip_grad_norm=0.01, **constant)
    scripted = Scripted(make_encoder(), (30.0, 0.0))
    task, _ = start(runs / "run", scripted, optim=optim, steps=4, log_every=100)
    assert (task.parameter - 1).norm().item() == pytest.approx(4 * 0.01, rel=1e-3)


def test_the_bar_shows_the_steps_that_are_done_and_the_last_loss(start, runs, monkeypatch):
    shown = []
    monkeypatch.setattr(TrainingProgress, "show", lambda self, *values: shown.append(values))
    start(runs / "run")
    lines = read_metrics(runs / "run")
    assert shown == [(line["step"] + 1, line["loss/total"]) for line in lines]


def test_due_steps_and_the_last_one_are_logged(start, runs):
    _, metrics = start(runs / "run", log_every=4)
    assert [line["step"] for line in read_metrics(runs / "run")] == [0, 4, 5]
    assert metrics["loss/total"] == read_metrics(runs / "run")[-1]["loss/total"]


def test_a_network_that_comes_in_eval_mode_is_trained_in_training_mode(start, make_encoder, runs):
    class Modes(Noisy):
        def forward(self, views, batch):
            seen.append({module.training for module in self.modules()})
            return super().forward(views, batch)

    seen = []
    start(runs / "run", Modes(make_encoder()).eval())
    assert seen == [{True}] * STEPS


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_the_norm_of_the_gradient_is_logged_as_it_was_before_it_was_clipped(
    start, make_encoder, runs, clip
):
    # Each of three numbers has a gradient of (2 + 2 * 0.5) / 3.
    task = Scripted(make_encoder(), (2.0, 0.5), weights=(1.0, 2.0))
    optim = OptimSettings(kind="sgd", lr=0.05, momentum=0.0, clip_grad_norm=clip)
    start(runs / "run", task, optim=optim)
    norms = [line["grad/norm"] for line in read_metrics(runs / "run")]
    assert norms == pytest.approx([math.sqrt(3)] * STEPS)


def test_collapse_is_measured_on_the_first_two_of_many_views(start, make_encoder, runs):
    class Views(Noisy):
        def forward(self, views, batch):
            losses = super().forward(views, batch)
            self.last_embeddings = [two_BD, -two_BD, two_BD, two_BD]
            return losses

    two_BD = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    start(runs / "run", Views(make_encoder()))
    for line in read_metrics(runs / "run"):
        assert line["collapse/alignment"] == pytest.approx(4.0)


def test_momentum_networks_move_after_every_step(start, make_encoder, runs):
    task, _ = start(runs / "run", Scripted(make_encoder(), (1.0, 1.0)))
    assert task.after == [(step, STEPS) for step in range(STEPS)]


def test_the_first_views_are_shown_once_and_not_after_a_resume(start, runs):
    shown = []
    with pytest.raises(KeyboardInterrupt):
        start(runs / "run", "simclr", hook=interrupt_at(2), on_first_views=shown.append)
    start(runs / "run", "simclr", on_first_views=shown.append)
    ((first, second),) = shown
    assert first.shape == (8, 3, 16, 16)
    assert first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, second)


@pytest.fixture
def training(make_encoder, make_store):
    loader = Loader(make_store(), 8, seed=1, num_steps=2)
    return Training(Noisy(make_encoder()), loader, (RECIPES["weak"],), OPTIM, seed=2)


def test_a_fixed_number_format_is_taken_without_measuring(training, runs, monkeypatch):
    def must_not_measure(*arguments, **named):
        raise AssertionError("measured")

    monkeypatch.setattr(arithmetic, "choose_precision", must_not_measure)
    device = DeviceSettings(accelerator="cpu", precision="fp32", memory_format="contiguous")
    fabric = choose_arithmetic(training, device, runs / "machine")
    assert (training.precision, training.memory_format) == ("fp32", torch.contiguous_format)
    assert fabric._precision.precision == "32-true"


def test_only_what_is_left_open_is_measured(training, runs, monkeypatch):
    seen = []

    def measured(make_step, candidates, **named):
        seen.extend(candidates)
        return SimpleNamespace(precision="fp32", memory_format="channels_last", remembered=True)

    monkeypatch.setattr(arithmetic, "choose_precision", measured)
    device = DeviceSettings(accelerator="cpu", precision="fp32")
    choose_arithmetic(training, device, runs / "machine")
    assert {precision for precision, _ in seen} == {"fp32"}
    assert len(seen) == 2
    assert training.memory_format == torch.channels_last


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_views_have_the_layout_of_the_weights(training, layout):
    training.memory_format = layout
    (view,) = training.views(next(iter(training.loader.iterate(0))))
    assert view.is_contiguous(memory_format=layout)


class TwoDepths(Task):
    """One loss on the embedding, one on an early map, with weights that change."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.num_views = encoder, 1
        encoder.set_taps(("layer1",))

    def forward(self, views, batch):
        found = self.encoder(views[0])
        self.last_embeddings = [found.embedding_BD.detach()]
        return {
            "late": found.embedding_BD.square().mean(),
            "early": found.maps["layer1"].square().mean(),
        }

    def weights_at(self, step, num_steps):
        return {"late": 1.0, "early": 0.5 * step}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_follow_their_schedule_and_gradients_are_logged_when_due(
    start, runs, make_encoder, precision
):
    start(runs / "run", TwoDepths(make_encoder()), steps=3, precision=precision)
    lines = read_metrics(runs / "run")
    assert [line["weighted/early"] for line in lines] == pytest.approx(
        [line["loss/early"] * weight for line, weight in zip(lines, (0, 0.5, 1), strict=True)]
    )
    # Every 100 steps unless told otherwise; a loss of weight 0 pulls with none.
    assert lines[0]["grad/late"] > 0 and lines[0]["grad/early"] == 0
    assert not {"grad/late", "grad/early"} & lines[1].keys()


def test_a_step_lasts_as_long_as_the_median_without_the_first(tmp_path, make_encoder):
    task = SimCLR(make_encoder())
    state = State(tmp_path / "none", task, torch.optim.SGD(task.parameters(), lr=1.0), ())
    for seconds in (10.0, 1.0, 2.0):
        state.advance(seconds)
    assert state.step_seconds() == 1.5
    assert state.step_seconds(last=1) == 2.0
    state.durations = [10.0]
    assert state.step_seconds() == 10.0


def test_waiting_for_images_is_logged(start, runs, monkeypatch):
    read = Loader.batch

    def slowly(*args):
        time.sleep(pause)
        return read(*args)

    began = time.perf_counter()
    _, metrics = start(runs / "quick")
    pause = max(0.2, 3 * (time.perf_counter() - began))  # whatever else the machine does
    assert 0 <= metrics["time/waiting"] < 0.8
    monkeypatch.setattr(Loader, "batch", slowly)
    _, metrics = start(runs / "slow")
    assert 0.8 < metrics["time/waiting"] <= 1
    assert [line["time/waiting"] for line in read_metrics(runs / "slow")][-1] > 0.8
