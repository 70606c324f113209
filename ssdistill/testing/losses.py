"""Checks of losses, with random outputs of two imaginary networks."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssdistill.data.batch import Batch
from ssdistill.data.extra import EXTRA
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.candidate import (
    DESCRIBED,
    Candidate,
    Check,
    demand,
    demand_close,
    demand_finite,
    names_its_origin,
)
from ssdistill.testing.synthetic import (
    NUM_SAMPLES,
    make_outputs,
    make_shapes,
    make_teacher_fit,
    mapped,
)
from ssdistill.train.passes import part_of

BATCH, CUT_BATCH = 8, 12
PARTS = slice(0, 8), slice(8, 12)
READS = {"embedding", "projection", "maps", "attention"}
NOISES = (0.05, 0.2, 1.0)


def build_loss(
    candidate: Candidate, known: Shapes | None = None, seed: int = 0, **changes: Any
) -> Loss:
    """The loss between two imaginary networks, in training mode and fitted to the teacher."""
    torch.manual_seed(seed)
    known = known or make_shapes()
    loss = candidate.build(known, changes=changes).train()
    loss.fit_teacher(make_teacher_fit(known, NUM_SAMPLES))
    return loss


def make_inputs(
    loss: Loss, step: int = 0, num_views: int | None = None
) -> tuple[Outputs, Outputs, Batch]:
    """What a loss is called with."""
    torch.manual_seed(100 + step)
    views = num_views or loss.views
    student, teacher = make_outputs(loss, BATCH, views)
    return student, teacher, make_batch(BATCH, step)


def make_batch(count: int, step: int, num_steps: int = 10) -> Batch:
    """``count`` images of the imaginary training images, in an order that torch draws."""
    images = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    index_B = torch.randperm(NUM_SAMPLES)[:count]
    return Batch(images, index_B, 0, step, num_steps, cutmix_fraction=0.7)


def fixed_statistics(module: nn.Module) -> None:
    """Let batch norms use what they know: batch statistics differ between parts by nature."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.eval()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def says_what_it_is(candidate: Candidate) -> None:
    """Its family, its citation, what it reads, and which further views it wants."""
    cls = candidate.cls
    family = getattr(cls, "family", "")
    demand(family and isinstance(family, str), "family must say what kind of loss it is")
    names_its_origin(candidate)
    unknown = set(cls.reads.split(", ")) - READS
    demand(not unknown, f"reads={cls.reads!r}: use {', '.join(sorted(READS))}")
    unknown = {*cls.extra_student, *cls.extra_teacher} - set(EXTRA)
    demand(not unknown, f"unknown extra views {', '.join(unknown)}; known: {', '.join(EXTRA)}")


def is_a_finite_scalar(candidate: Candidate, extra_views: int) -> None:
    """Its value is one finite number of float32, also with more views than it requires."""
    loss = build_loss(candidate)
    value = loss(*make_inputs(loss, num_views=loss.views + extra_views))
    demand(value.shape == (), f"the loss has shape {tuple(value.shape)}; return one number")
    demand(value.dtype == torch.float32, f"the loss is {value.dtype}; compute it in float32")
    demand(torch.isfinite(value), f"the loss is {value.item()}")


def read_by(loss: Loss, view: Representation) -> dict[str, Tensor]:
    """The student's tensors that the loss says it reads; its head makes any projection."""
    tensors = {f"the map {tap}": view.maps[tap] for tap in loss.student_taps}
    if {"embedding", "projection"} & set(loss.reads.split(", ")):
        tensors["the embedding"] = view.embedding_BD
    return tensors


def gradient_reaches_what_is_read(candidate: Candidate) -> None:
    """The gradient reaches what the loss reads of the student and every part that it trains."""
    loss = build_loss(candidate)
    student, teacher, batch = make_inputs(loss)
    loss(student, teacher, batch).backward()
    for view in student:
        for name, tensor in read_by(loss, view).items():
            reached = tensor.grad is not None and tensor.grad.abs().max() > 0
            demand(reached, f"no gradient reaches {name} of the student; see reads")
    for view in student.masked:
        reached = any(tensor.grad is not None for tensor in view.maps.values())
        demand(reached, "no gradient reaches the student's maps of masked views")
    for name, parameter in loss.named_parameters():
        # A mask token is in the student's input.
        if not parameter.requires_grad or name.endswith("mask_token_D"):
            continue
        demand(parameter.grad is not None, f"no gradient reaches {name}")
        demand_finite({name: parameter})
        # A bias in front of a batch norm has gradient zero; a weight never has.
        moved = parameter.ndim < 2 or (parameter.grad is not None and parameter.grad.any())
        demand(moved, f"the gradient of {name} is zero")


def continues_exactly(candidate: Candidate) -> None:
    """After an interruption, its state dict alone lets it go on to the same numbers."""
    whole, resumed = build_loss(candidate), build_loss(candidate, seed=1)
    whole(*make_inputs(whole, step=0))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    inputs = make_inputs(whole, step=1)
    random_state = torch.get_rng_state()
    expected = whole(*inputs)
    torch.set_rng_state(random_state)
    same = torch.equal(resumed(*inputs), expected)
    demand(same, "the loss differs after its state dict was loaded; keep all state in buffers")
    states = whole.state_dict(), resumed.state_dict()
    for name in states[0]:
        demand(torch.equal(states[0][name], states[1][name]), f"{name} differs after a resume")


def bfloat16_is_finite_and_near(candidate: Candidate) -> None:
    """With bfloat16 outputs and autocast, the loss is float32, finite and about the same."""
    loss = build_loss(candidate)
    student, teacher, batch = make_inputs(loss)
    exact = copy.deepcopy(loss)(student, teacher, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student, teacher = (mapped(side, Tensor.bfloat16) for side in (student, teacher))
        value = loss(student, teacher, batch)
    value.backward()
    demand(value.dtype == torch.float32, f"in bfloat16 the loss is {value.dtype}, not float32")
    found, expected = float(value.detach()), float(exact.detach())
    demand_close(found, expected, 0.1, 0.05, "the loss in bfloat16")
    demand_finite(state_of(loss))


def is_minimal_at_the_teacher(candidate: Candidate) -> None:
    """Where ``minimum_at_teacher`` is set, noise on a student like the teacher raises the loss."""
    loss = build_loss(candidate, make_shapes(16, 16))
    _, teacher, batch = make_inputs(loss)

    def value(noise: float) -> float:
        torch.manual_seed(7)
        student = mapped(teacher, lambda x: x + noise * torch.randn_like(x))
        return float(copy.deepcopy(loss)(student, teacher, batch))

    at_teacher = value(0.0)
    for noise in NOISES:
        higher = value(noise) > at_teacher
        demand(higher, f"noise of {noise} on a student like the teacher does not raise the loss")


def is_mean_of_its_parts(loss: Loss) -> bool:
    """Whether the whole batch and its parts, one after the other, give one value and one state."""
    torch.manual_seed(0)
    student, teacher = make_outputs(loss, CUT_BATCH, max(2, loss.views))
    parts_loss = copy.deepcopy(loss)
    torch.manual_seed(1)
    batch = make_batch(CUT_BATCH, 1)

    def value(loss: Loss, rows: slice, batch: Batch) -> Tensor:
        sides = (mapped(side, lambda x: x.detach()[rows]) for side in (student, teacher))
        return loss(*sides, batch).detach()

    torch.manual_seed(5)
    whole = value(loss, slice(None), batch)
    torch.manual_seed(5)
    parts = [value(parts_loss, rows, part_of(batch, rows)) for rows in PARTS]
    weights = [(rows.stop - rows.start) / CUT_BATCH for rows in PARTS]
    mean = torch.stack([w * x for w, x in zip(weights, parts, strict=True)]).sum()
    states = zip(loss.state_dict().values(), parts_loss.state_dict().values(), strict=True)
    same_state = all(torch.allclose(one, other, rtol=1e-5) for one, other in states)
    return bool((whole - mean).abs() <= 1e-5 * whole.abs()) and same_state


def _build_to_cut(candidate: Candidate, **changes: Any) -> Loss:
    loss = build_loss(candidate, seed=3, **changes)
    fixed_statistics(loss)
    return loss


def accumulates_where_it_says_so(candidate: Candidate, **changes: Any) -> None:
    """``accumulates`` is set exactly where the loss is the mean of those of parts of a batch."""
    loss = _build_to_cut(candidate, **changes)
    found = is_mean_of_its_parts(loss)
    where = "".join(f" with {name}={value}" for name, value in changes.items())
    is_or_not = "is" if found else "is not"
    fault = f"{is_or_not} the mean of its parts{where}, but accumulates={loss.accumulates}"
    demand(loss.accumulates == found, f"the loss {fault}")
    if not changes and not candidate.settings:
        differs = f"accumulates={candidate.cls.accumulates} of the class, {found} of its instance"
        demand(candidate.cls.accumulates == found, differs)


def variants(candidate: Candidate) -> list[dict[str, Any]]:
    """Every setting of a loss that is a choice, with each value but its default."""
    found = []
    for name, field in candidate.schema.model_fields.items():
        options = (True, False) if field.annotation is bool else get_args(field.annotation)
        plain = [o for o in options if isinstance(o, str | bool) or type(o) is int]
        for option in plain:
            if option != field.default and name not in ("kind", "schedule", "pairs", "teacher"):
                found.append({name: option})
    return found


def accumulates_with_a_setting(candidate: Candidate, change: dict[str, Any]) -> bool:
    """Check the same of one variant; False where these networks do not have what it reads."""
    try:
        _build_to_cut(candidate, **change)
    except UserError:
        return False
    accumulates_where_it_says_so(candidate, **change)
    return True


def accumulates_whatever_the_settings(candidate: Candidate) -> None:
    """No setting makes a loss that accumulates compare images in silence."""
    for change in variants(candidate):
        accumulates_with_a_setting(candidate, change)


def _has(flag: str) -> Callable[[Candidate], bool]:
    return lambda candidate: bool(getattr(candidate.cls, flag))


ON_OUTPUTS = {
    **DESCRIBED,
    "description": Check(says_what_it_is),
    "scalar": Check(partial(is_a_finite_scalar, extra_views=0)),
    "scalar_of_further_views": Check(partial(is_a_finite_scalar, extra_views=1)),
    "gradients": Check(gradient_reaches_what_is_read),
    "resume": Check(continues_exactly),
    "bfloat16": Check(bfloat16_is_finite_and_near),
    "minimum_at_teacher": Check(is_minimal_at_the_teacher, _has("minimum_at_teacher")),
    "accumulates": Check(accumulates_where_it_says_so),
    "accumulates_with_any_setting": Check(accumulates_whatever_the_settings, _has("accumulates")),
}
"""Those that take no network."""
