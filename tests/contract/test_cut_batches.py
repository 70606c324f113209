"""Batches that are cut: micro-batches for every method and loss, accumulation where declared."""

import copy
from typing import get_args

import pytest
import torch
from synthetic import NUM_SAMPLES, make_outputs, make_shapes, make_teacher_fit, mapped
from test_losses import REFUSED, make_distiller
from test_methods import SMALL, vision_transformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Loss
from ssdistill.settings.registry import LOSSES, METHODS
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.passes import part_of

COUNT, STEPS = 12, 10
PARTS = slice(0, 8), slice(8, 12)
LOSS_KINDS, METHOD_KINDS = list(LOSSES.classes), list(METHODS.classes)


def fixed_statistics(module: nn.Module) -> None:
    """Batch statistics differ between parts by their nature."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.eval()


def make_batch(step: int = 1, sizes: int = 1) -> Batch:
    torch.manual_seed(step)
    images = torch.zeros(COUNT, sizes, sizes, 3, dtype=torch.uint8)
    index_B = torch.randperm(NUM_SAMPLES)[:COUNT]
    return Batch(images, index_B, 0, step, STEPS, cutmix_fraction=0.7)


def gradients_of(task, views: list[Tensor], batch: Batch, microbatch: int | None):
    """Losses and gradients of a copy of the task, and its state after both passes."""
    task = copy.deepcopy(task)
    torch.manual_seed(9)
    with in_microbatches(task, COUNT, microbatch):
        losses = task(views, batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    state = {name: value.clone() for name, value in task.state_dict().items()}
    return {n: loss.detach() for n, loss in losses.items()}, gradients, state


def assert_equal_but_for_rounding(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        largest = max(float(x.abs().max()) for x in other.values() if x.numel())
        for name, value in other.items():
            gap = (one[name].double() - value.double()).abs().max()
            assert gap <= 1e-5 * value.abs().max() + 1e-6 * largest, name


@pytest.mark.parametrize("kind", METHOD_KINDS)
def test_a_method_in_micro_batches_is_the_method(kind):
    settings = METHODS.schema(kind).model_validate(
        {"kind": kind, "steps": STEPS, **SMALL.get(kind, {})}
    )
    method = METHODS.build(settings, vision_transformer()).train()
    views = [torch.rand(COUNT, 3, 16, 16) for _ in method.recipes]
    if method.multicrop:
        views = [torch.rand(COUNT, 3, 16, 16) for _ in range(4)]
    batch = make_batch(sizes=16)
    expected = gradients_of(method, views, batch, None)
    assert_equal_but_for_rounding(gradients_of(method, views, batch, 5), expected)


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_a_distillation_in_micro_batches_is_the_distillation(kind):
    pair = next(p for p in ("vit-vit", "cnn-cnn") if p not in REFUSED.get(kind, ()))
    distiller = make_distiller(kind, pair)
    fixed_statistics(distiller.encoder)
    if distiller.momentum_student is not None:
        fixed_statistics(distiller.momentum_student)
    count = distiller.num_views + len(distiller.extra_views)
    views = [torch.rand(COUNT, 3, 32, 32) for _ in range(count)]
    expected = gradients_of(distiller, views, make_batch(), None)
    assert_equal_but_for_rounding(gradients_of(distiller, views, make_batch(), 5), expected)


def build(kind: str, **settings) -> Loss:
    torch.manual_seed(3)
    known = make_shapes()
    loss = LOSSES.build(LOSSES.schema(kind)(**settings), known).train()
    loss.fit_teacher(make_teacher_fit(known, NUM_SAMPLES))
    fixed_statistics(loss)
    return loss


def is_mean_of_its_parts(loss: Loss) -> bool:
    """Whether the whole batch and its parts, one after the other, give one value and one state."""
    torch.manual_seed(0)
    student, teacher = make_outputs(loss, COUNT, max(2, loss.views))
    parts_loss, batch = copy.deepcopy(loss), make_batch()

    def value(loss: Loss, rows: slice, batch: Batch) -> Tensor:
        sides = (mapped(side, lambda x: x.detach()[rows]) for side in (student, teacher))
        return loss(*sides, batch).detach()

    torch.manual_seed(5)
    whole = value(loss, slice(None), batch)
    torch.manual_seed(5)
    parts = [value(parts_loss, rows, part_of(batch, rows)) for rows in PARTS]
    mean = sum((rows.stop - rows.start) / COUNT * x for rows, x in zip(PARTS, parts, strict=True))
    states = zip(loss.state_dict().values(), parts_loss.state_dict().values(), strict=True)
    same_state = all(torch.allclose(one, other, rtol=1e-5) for one, other in states)
    return bool((whole - mean).abs() <= 1e-5 * whole.abs()) and same_state


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_a_loss_is_the_mean_of_its_parts_exactly_where_it_says_so(kind):
    loss = build(kind)
    assert loss.accumulates == LOSSES[kind].accumulates == is_mean_of_its_parts(loss)


def variants(kind: str) -> list[dict]:
    """Every setting of a loss that is a choice, with each value but its default."""
    found = []
    for name, field in LOSSES.schema(kind).model_fields.items():
        options = (True, False) if field.annotation is bool else get_args(field.annotation)
        plain = [o for o in options if isinstance(o, str | bool) or type(o) is int]
        for option in plain:
            if option != field.default and name not in ("kind", "schedule", "pairs", "teacher"):
                found.append({name: option})
    return found


VARIANTS = [
    pytest.param(kind, change, id=f"{kind}-{change}")
    for kind in LOSS_KINDS
    for change in variants(kind)
    if LOSSES[kind].accumulates
]


@pytest.mark.parametrize(("kind", "change"), VARIANTS)
def test_no_setting_makes_a_loss_compare_images_in_silence(kind, change):
    try:
        loss = build(kind, **change)
    except UserError:
        pytest.skip("these networks do not have it")
    assert loss.accumulates == is_mean_of_its_parts(loss)


@pytest.mark.parametrize("kind", METHOD_KINDS)
def test_a_method_is_the_mean_of_its_parts_exactly_where_it_says_so(kind):
    settings = METHODS.schema(kind).model_validate(
        {"kind": kind, "steps": STEPS, **SMALL.get(kind, {})}
    )
    method = METHODS.build(settings, vision_transformer()).train()
    fixed_statistics(method)
    assert bool(method.comparing) != method.accumulates
    other, batch = copy.deepcopy(method), make_batch(sizes=16)
    views = [torch.rand(COUNT, 3, 16, 16) for _ in method.recipes]
    (whole,) = (sum(method(views, batch).values()).detach(),)
    mean = torch.zeros(())
    for rows in PARTS:
        losses = other([view[rows] for view in views], part_of(batch, rows))
        mean = mean + (rows.stop - rows.start) / COUNT * sum(losses.values()).detach()
    states = zip(method.state_dict().values(), other.state_dict().values(), strict=True)
    same_state = all(torch.allclose(one, two, rtol=1e-5) for one, two in states)
    assert method.accumulates == (bool((whole - mean).abs() <= 1e-5 * whole.abs()) and same_state)
