"""Training in float16: scaled losses, skipped steps, and what a checkpoint keeps of them."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.float16 import in_float16
from ssdistill.pretrain.byol import BYOL, BYOLPredictor, BYOLProjector
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.checkpoint import load_checkpoint
from ssdistill.train.fabric import build_fabric
from ssdistill.train.loop import CHECKPOINT, Training, fit
from ssdistill.train.loss_scale import HANDFUL, SMALLEST
from ssdistill.train.optim import OptimSettings, learning_rate
from ssdistill.train.progress import console
from ssdistill.train.seeding import seed_generators
from ssdistill.train.task import Task

OPTIM = OptimSettings(kind="sgd", lr=0.05, clip_grad_norm=0.1)
FIRST = 2.0**16
"""torch's first loss scale."""


class Infinite(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, math.inf)


class Elementwise(Task):
    """Two losses of one weight that autocast leaves in float32, with overflows as told."""

    def __init__(self, encoder, overflows=lambda step: False):
        super().__init__()
        self.encoder, self.num_views, self.overflows = encoder, 1, overflows
        self.weight, self.after, self.half = encoder.net.conv1.weight, [], []

    def weights_at(self, step, num_steps):
        return {"near": 1.0, "far": 0.5}

    def forward(self, views, batch):
        self.last_embeddings = []
        self.half.append(in_float16("cpu"))
        weight = Infinite.apply(self.weight) if self.overflows(batch.step) else self.weight
        x_B = batch.index_B.float()
        near = (weight.sum() - x_B).square().mean()
        return {"near": near, "far": (weight.square().sum() * x_B).sin().mean()}

    def after_step(self, step, num_steps):
        self.after.append(step)


def encoder():
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16)}
    args |= {"stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16)


@pytest.fixture
def start(make_store):
    """``start(folder, task)`` trains in float16, from scratch or from where it was."""

    def start(folder, task, steps=6, precision="16-mixed", hook=None, **changes) -> list[dict]:
        training = Training(
            task=task,
            loader=Loader(make_store(), 8, seed=1, num_steps=steps),
            recipes=(RECIPES["weak"],) * task.num_views,
            **{"optim": OPTIM, "seed": 2, "checkpoint_seconds": 1e9, "title": "it"} | changes,
        )
        seed_generators(0, "training")
        run = Run(folder, stage="pretrain", digest="d" * 64, seed=0)
        settings = TrackingSettings(wandb="disabled", log_every=1, gradients_every=1)
        with Tracker(run, settings) as tracker:
            if hook is not None:
                log = tracker.log
                tracker.log = lambda step, *rest: (log(step, *rest), hook(step))
            tracker.finish(fit(training, build_fabric("cpu", precision=precision), tracker))
        lines = read_metrics(folder)
        return [{k: v for k, v in x.items() if not k.startswith("time/")} for x in lines]

    return start


def without_scale(lines: list[dict]) -> list[dict]:
    scale = ("optim/loss_scale", "optim/skipped_steps")
    return [{k: v for k, v in line.items() if k not in scale} for line in lines]


@pytest.mark.parametrize("cut", [{}, {"accumulate": 2}])
def test_a_scaled_training_is_the_same_one(start, tmp_path, cut, monkeypatch):
    """Powers of two cancel: weights, clipping and logged norms are those of float32."""
    monkeypatch.setattr(Elementwise, "comparing", ())
    scaled, plain = Elementwise(encoder()), Elementwise(encoder())
    lines = start(tmp_path / "scaled", scaled, **cut)
    expected = start(tmp_path / "plain", plain, precision="32-true", **cut)
    assert all(scaled.half) and not any(plain.half)
    assert torch.equal(scaled.weight, plain.weight)
    assert without_scale(lines) == expected
    assert {line["optim/loss_scale"] for line in lines} == {FIRST}
    assert expected[0]["grad/norm"] > OPTIM.clip_grad_norm
    assert {"grad/near", "grad/far"} <= expected[0].keys()


def test_a_step_that_overflows_changes_nothing_but_the_scale(start, tmp_path, capsys):
    weights = []
    task = Elementwise(encoder(), overflows=lambda step: step in (2, 3))
    lines = start(tmp_path, task, hook=lambda step: weights.append(task.weight.detach().clone()))
    equal = [torch.equal(a, b) for a, b in pairwise(weights)]
    assert equal == [False, True, True, False, False]
    assert task.after == [0, 1, 4, 5]
    assert [line["optim/skipped_steps"] for line in lines] == [0, 0, 1, 2, 2, 2]
    scales = [FIRST, FIRST, FIRST / 2, FIRST / 4, FIRST / 4, FIRST / 4]
    assert [line["optim/loss_scale"] for line in lines] == scales
    # Schedules go on by the step.
    rates = [learning_rate(OPTIM, step, 6) for step in range(6)]
    assert [line["optim/lr"] for line in lines] == pytest.approx(rates)
    assert "skipped" not in capsys.readouterr().err


def test_many_skipped_steps_are_told_once(start, tmp_path):
    with console.capture() as said:
        start(tmp_path, Elementwise(encoder(), lambda step: step % 2 == 0), steps=24)
    assert said.get().count("steps were skipped") == 1
    assert f"  it: {HANDFUL + 1} of {2 * HANDFUL + 1} steps were skipped" in said.get()


def test_gradients_that_no_scale_makes_finite_end_the_training_in_one_line(start, tmp_path):
    task = Elementwise(encoder(), overflows=lambda step: True)
    before = task.weight.detach().clone()
    with pytest.raises(UserError, match=r"^device\.precision=fp16: gradients are inf") as caught:
        start(tmp_path, task, steps=40)
    assert "\n" not in str(caught.value) and "at step 30," in str(caught.value)
    assert torch.equal(task.weight, before) and task.after == []
    assert FIRST / 2**30 == SMALLEST


def test_a_training_that_took_no_step_is_refused_at_its_end(start, tmp_path):
    task = Elementwise(encoder(), overflows=lambda step: True)
    with pytest.raises(UserError, match=r"^device\.precision=fp16: all 6 steps were skipped"):
        start(tmp_path, task)


class Killed(Exception):
    pass


def overflowing_byol() -> BYOL:
    """A network that encodes in float16, with a step that is skipped before it is killed."""
    heads = {"projector": BYOLProjector(hidden_dim=16, output_dim=8)}
    task = BYOL(encoder(), predictor=BYOLPredictor(hidden_dim=16), **heads).train()
    weight, forward = task.encoder.net.conv1.weight, task.forward
    weight.register_hook(lambda grad: grad * (math.inf if task.step == 1 else 1.0))

    def noting(views: list[Tensor], batch) -> dict[str, Tensor]:
        task.step = batch.step
        assert task.encoder(views[0]).maps == {} and in_float16("cpu")
        return forward(views, batch)

    task.forward = noting
    return task


def test_a_killed_training_in_micro_batches_ends_as_if_it_had_not_been(start, tmp_path):
    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    settings = {"microbatch": 3, "checkpoint_seconds": 0}
    whole = start(tmp_path / "whole", overflowing_byol(), **settings)
    with pytest.raises(Killed):
        start(tmp_path / "cut", overflowing_byol(), hook=kill, **settings)
    skipped = load_checkpoint(tmp_path / "cut" / CHECKPOINT)["loss_scale"]["skipped"]
    assert skipped >= 1
    assert start(tmp_path / "cut", overflowing_byol(), **settings) == whole
    first, second = (load_checkpoint(tmp_path / n / CHECKPOINT) for n in ("whole", "cut"))
    assert first["loss_scale"] == second["loss_scale"]
    assert first["loss_scale"]["scaler"]["scale"] <= FIRST / 2**skipped
    for name, value in first["task"].items():
        assert torch.equal(value, second["task"][name]), name


def test_other_precisions_keep_checkpoints_and_metrics_as_they_are(start, tmp_path):
    task = Elementwise(encoder())
    lines = start(tmp_path, task, precision="bf16-mixed", checkpoint_seconds=0)
    assert lines == without_scale(lines)
    assert "loss_scale" not in load_checkpoint(tmp_path / CHECKPOINT)
