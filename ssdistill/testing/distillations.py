"""Checks of losses in distillations between tiny networks, from the example in the docstring."""

import copy
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.errors import UserError
from ssdistill.experiment.yaml_text import read_text
from ssdistill.losses import LossSettings
from ssdistill.models.backbones import Encoder
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.candidate import Candidate, Check, demand, one_line_error
from ssdistill.testing.losses import BATCH, CUT_BATCH, fixed_statistics, make_batch
from ssdistill.testing.synthetic import NUM_SAMPLES, make_teacher_fit
from ssdistill.testing.tiny_networks import three_stages, transformer
from ssdistill.train.microbatch import in_microbatches

IMAGE_SIZE, STEPS, MICROBATCH = 32, 2, 5


def _cnn(*channels: int) -> Encoder:
    return three_stages(channels, IMAGE_SIZE)


def _vit(width: int, patch_size: int) -> Encoder:
    return transformer(width, patch_size, IMAGE_SIZE)


ARCHITECTURES: dict[str, Callable[[], tuple[Encoder, Encoder]]] = {
    "cnn_cnn": lambda: (_cnn(8, 16, 16, 16), _cnn(8, 24, 24, 24)),
    "vit_cnn": lambda: (_vit(16, 16), _cnn(8, 24, 24, 24)),
    "cnn_vit": lambda: (_cnn(8, 16, 16, 16), _vit(32, 8)),
    "vit_vit": lambda: (_vit(16, 16), _vit(32, 8)),
}
"""Student and teacher."""


def documented_losses(candidate: Candidate) -> dict[str, tuple[Candidate, Any]]:
    """The losses of the YAML example in its docstring, with their settings, by name.

    Raises:
        AssertionError: there is none, or it is none of this loss.
    """
    text = inspect.getdoc(candidate.cls) or ""
    snippet = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    if snippet is None:
        raise AssertionError("no YAML snippet; put ```yaml and losses: {…} in the docstring")
    config = read_text(snippet[1], "the example in the docstring")
    losses = config.get("losses") if isinstance(config, dict) else None
    demand(isinstance(losses, dict) and losses, "the YAML example has no losses")
    found = {}
    for name, loss in cast("dict[str, dict[str, Any]]", losses).items():
        own = loss.get("kind") == candidate.kind
        one = candidate if own else Candidate(LOSSES, LOSSES[loss["kind"]])
        found[name] = one, one.schema(**loss)
    kinds = {chosen.kind for _, chosen in found.values()}
    demand(candidate.kind in kinds, f"the YAML example has no loss of kind {candidate.kind}")
    return found


def make_distiller(candidate: Candidate, architectures: str) -> Distiller:
    """A distillation by the losses of the example."""
    documented = documented_losses(candidate)
    torch.manual_seed(0)
    student, teacher = ARCHITECTURES[architectures]()
    teacher.projector = nn.Sequential(nn.Linear(teacher.embed_dim, 10))
    known = shapes(student, teacher, NUM_SAMPLES)
    losses = {
        name: LOSSES.build_of(one.cls, chosen, known) for name, (one, chosen) in documented.items()
    }
    for loss in losses.values():
        loss.fit_teacher(make_teacher_fit(known, NUM_SAMPLES))
    settings: dict[str, LossSettings] = {name: chosen for name, (_, chosen) in documented.items()}
    return Distiller(student, teacher, losses, settings).train()


def _views(distiller: Distiller, count: int) -> list[Tensor]:
    number = distiller.num_views + len(distiller.extra_views)
    return [torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE) for _ in range(number)]


def train_step(distiller: Distiller, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step of a distillation on random images."""
    views, batch = _views(distiller, BATCH), make_batch(BATCH, step, STEPS)
    weights = distiller.weights_at(step, STEPS)
    losses = distiller(views, batch)
    torch.stack([weights[name] * value for name, value in losses.items()]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    distiller.after_step(step, STEPS)


def refusal(candidate: Candidate, architectures: str) -> str | None:
    """How the loss refuses these networks; None if it takes them.

    Raises:
        AssertionError: the error does not begin with the kind, or names none of the networks.
    """
    try:
        make_distiller(candidate, architectures)
    except UserError as error:
        one_line_error(error, f"networks that it refuses ({architectures})")
        named = re.match(f"{candidate.kind}: .*(resnet10t|vit_tiny)", str(error))
        demand(named, f"the refusal of networks must be 'kind: … NAME …', but is: {error}")
        return str(error)
    return None


def documented_example_trains(candidate: Candidate, architectures: str) -> None:
    """The example trains: weights move and stay finite, and the teacher remains as it was.

    Networks that do not have what the loss reads may be refused by ``Loss.fail``.
    """
    if refusal(candidate, architectures) is not None:
        return
    distiller = make_distiller(candidate, architectures)
    student, teacher = distiller.student, distiller.teacher
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    student_before, teacher_before = (copy.deepcopy(e.state_dict()) for e in (student, teacher))
    for step in range(STEPS):
        train_step(distiller, optimizer, step)
    for name, parameter in distiller.named_parameters():
        demand(torch.isfinite(parameter).all(), f"{name} is not finite after {STEPS} steps")
    for name, loss in distiller.losses.items():
        hidden = loss.mask_token_D.abs().max() > 0 if loss.masks_student else True
        demand(hidden, f"{name}: its mask token, which begins at 0, does not move")
    moved = any(not torch.equal(v, student_before[n]) for n, v in student.named_parameters())
    demand(moved, f"no weight of the student moves ({architectures})")
    for name, value in teacher.state_dict().items():
        demand(torch.equal(value, teacher_before[name]), f"{name} of the teacher has changed")
    untouched = all(p.grad is None for p in teacher.parameters())
    demand(untouched, "the teacher gets a gradient; read its outputs alone")


def some_networks_are_accepted(candidate: Candidate) -> None:
    """At least one pair of ordinary networks has what it reads."""
    refusals = {pair: refusal(candidate, pair) for pair in ARCHITECTURES}
    demand(None in refusals.values(), f"all networks are refused: {refusals.get('cnn_cnn')}")


def gradients_of(
    task: Any, views: list[Tensor], batch: Batch, microbatch: int | None
) -> tuple[dict[str, Tensor], ...]:
    """Losses and gradients of a copy of the task, and its state after both passes."""
    task = copy.deepcopy(task)
    torch.manual_seed(9)
    with in_microbatches(task, len(views[0]), microbatch):
        losses = task(views, batch)
    torch.stack([*losses.values()]).sum().backward()
    gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    state = {name: value.clone() for name, value in task.state_dict().items()}
    return {n: loss.detach() for n, loss in losses.items()}, gradients, state


def demand_equal_but_for_rounding(
    found: tuple[dict[str, Tensor], ...], expected: tuple[dict[str, Tensor], ...]
) -> None:
    """Demand that micro-batches give the losses, gradients and state of the whole batch."""
    for one, other in zip(found, expected, strict=True):
        demand(one.keys() == other.keys(), "micro-batches give other losses or gradients")
        largest = max(float(x.abs().max()) for x in other.values() if x.numel())
        for name, value in other.items():
            gap = (one[name].double() - value.double()).abs().max()
            near = gap <= 1e-5 * value.abs().max() + 1e-6 * largest
            demand(near, f"{name} differs by {float(gap):.2g} in micro-batches")


def is_the_same_in_microbatches(candidate: Candidate) -> None:
    """A distillation in micro-batches is the distillation of the whole batch."""
    taken = (p for p in ("vit_vit", "cnn_cnn") if refusal(candidate, p) is None)
    distiller = make_distiller(candidate, next(taken, "vit_cnn"))
    fixed_statistics(distiller.encoder)
    if distiller.momentum_student is not None:
        fixed_statistics(distiller.momentum_student)
    torch.manual_seed(1)
    views, batch = _views(distiller, CUT_BATCH), make_batch(CUT_BATCH, 1)
    expected = gradients_of(distiller, views, batch, None)
    found = gradients_of(distiller, views, batch, MICROBATCH)
    demand_equal_but_for_rounding(found, expected)


TRAINS = {
    f"trains_{pair}": Check(partial(documented_example_trains, architectures=pair))
    for pair in ARCHITECTURES
}
IN_DISTILLATIONS = {
    **TRAINS,
    "networks": Check(some_networks_are_accepted),
    "microbatches": Check(is_the_same_in_microbatches),
}
"""Those of the example in the docstring."""
