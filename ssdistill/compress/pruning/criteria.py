"""Importance of channels and heads: from weights, inputs, or the loss."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeGuard, cast

import torch
from torch import Tensor, nn

from ssdistill.compress import Context
from ssdistill.compress.pruning.narrow import ChannelGroup, Member
from ssdistill.errors import UserError
from ssdistill.models.factorized import Plain
from ssdistill.models.model import Model

Criterion = Literal[
    "l2", "l1", "bn_scale", "lamp", "activation", "taylor", "hessian", "random"
]  # fmt: skip
BATCHES = 8
"""Batches of the distillation loss that gradients are averaged over."""
LARGEST_BATCH = 32
Scores = Sequence[Tensor | None]
Layers = Mapping[str, nn.Module]


def score_groups(
    criterion: Criterion,
    model: Model,
    groups: Sequence[ChannelGroup],
    context: Context,
    images: int = 256,
    seed: int = 0,
) -> Scores:
    """Score the importance of every unit of every group.

    - ``l1``, ``l2``: norm of all weights the unit touches, the mean over the layers.
    - ``bn_scale``: mean absolute scale in batch norms (Liu et al., ICCV 2017, arXiv:1708.06519).
    - ``lamp``: square norm over that of the units of its group that are no smaller (Lee et al.,
      ICLR 2021, arXiv:2010.07611, eq. 2), comparable between layers.
    - ``activation``: sum of |weight| times the norm of the input it multiplies, over all that
      reads the unit (Sun et al., ICLR 2024, arXiv:2306.11695, eq. 1, summed up).
    - ``taylor``: |sum of weight times gradient| over the weights that read the unit: how much
      the loss changes without it, to first order (Molchanov et al., CVPR 2019, arXiv:1906.10771).
    - ``hessian``: half the sum of weight² times mean gradient² over the same weights: to second
      order, with Fisher's diagonal for the Hessian (Theis et al., arXiv:1801.05787, eq. 5).
    - ``random``: uniform, from ``seed``.

    Args:
        groups: from :func:`ssdistill.compress.pruning.graph.survey`.
        context: the inputs of ``activation``; the loss of ``taylor`` and ``hessian``.
        images: how many inputs ``activation`` looks at.

    Returns:
        (C,) per group on the CPU; None where the criterion says nothing of a group.

    Raises:
        UserError: no loss or no inputs where they are required.
    """
    layers = dict(model.net.named_modules())
    if criterion == "random":
        return [_random(group, seed * 10_000 + number) for number, group in enumerate(groups)]
    if criterion == "bn_scale":
        return [_bn_scale(layers, group) for group in groups]
    if criterion == "activation":
        return _activation(model, groups, context.images(images, seed))
    if criterion in ("taylor", "hessian"):
        return _from_loss(criterion, model, groups, context, seed)
    power = 1 if criterion == "l1" else 2
    scores = [_norm(layers, group, power) for group in groups]
    return [_lamp(score_C) for score_C in scores] if criterion == "lamp" else scores


def _random(group: ChannelGroup, seed: int) -> Tensor:
    return torch.rand(len(group.score_C), generator=torch.Generator().manual_seed(seed))


def _by_unit(member: Member, value_N: Tensor, units: int) -> Tensor:
    """Sums over the channels of every unit."""
    total_C = torch.zeros(units, dtype=torch.float64)
    chosen_N = value_N.detach().cpu().double()[member.channel_N]
    return total_C.index_add_(0, member.unit_N, chosen_N)


def _per_channel(layer: nn.Module, side: str, value: Tensor) -> Tensor:
    """Sums of something as large as the layer's weight over all that one channel has of it."""
    axis = 1 if side == "in" else 0
    return value.transpose(0, axis).flatten(1).sum(1)


def _reads_channels(layer: nn.Module | None, member: Member) -> TypeGuard[Plain]:
    """Whether a member is what reads the channels; a grouped layer loses its outputs instead."""
    is_supported = isinstance(layer, (nn.Conv2d, nn.Linear))
    return is_supported and member.side == "in" and getattr(layer, "groups", 1) == 1


def _norm(layers: Layers, group: ChannelGroup, power: int) -> Tensor:
    parts = []
    for member in group.members:
        layer = layers.get(member.layer)
        grouped = getattr(layer, "groups", 1) > 1 and member.side == "in"
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not grouped:
            value_N = _per_channel(layer, member.side, layer.weight.abs().pow(power))
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            value_N = layer.weight.abs().pow(power)
        else:
            continue
        parts.append(_by_unit(member, value_N, len(group.score_C)))
    return torch.stack(parts).mean(0).float()


def _bn_scale(layers: Layers, group: ChannelGroup) -> Tensor | None:
    parts = []
    for member in group.members:
        layer = layers.get(member.layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            parts.append(_by_unit(member, layer.weight.abs(), len(group.score_C)))
    return torch.stack(parts).mean(0).float() if parts else None


def _lamp(score_C: Tensor) -> Tensor:
    order_C = score_C.argsort(descending=True)
    # The running sum over all that are no smaller, itself included.
    lamp_C = torch.empty_like(score_C)
    sorted_C = score_C[order_C].double()
    lamp_C[order_C] = (sorted_C / sorted_C.cumsum(0).clamp(min=1e-30)).float()
    return lamp_C


@torch.no_grad()
def _activation(model: Model, groups: Sequence[ChannelGroup], x: Tensor) -> Scores:
    if not len(x):
        raise UserError("prune: criterion=activation requires images, got none")
    layers = dict(model.net.named_modules())
    readers = {
        m.layer for g in groups for m in g.members if _reads_channels(layers.get(m.layer), m)
    }
    norms = _input_norms(model, sorted(readers), x)
    scores: list[Tensor] = []
    for group in groups:
        score_C = torch.zeros(len(group.score_C), dtype=torch.float64)
        for member in group.members:
            layer = layers.get(member.layer)
            if _reads_channels(layer, member):
                value_N = _per_channel(layer, "in", layer.weight.abs()).cpu() * norms[member.layer]
                score_C += _by_unit(member, value_N, len(group.score_C))
        scores.append(score_C.float())
    return scores


def _input_norms(model: Model, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """Root mean square of every input channel of the named layers."""
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, layer: nn.Module, layer_input: Tensor) -> None:
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        value_NC = layer_input.movedim(axis, -1).flatten(0, -2).double().square().cpu()
        squares[name] = squares.get(name, 0) + value_NC.sum(0)
        counts[name] = counts.get(name, 0) + len(value_NC)

    model = copy.deepcopy(model).eval()
    layers = dict(model.net.named_modules())
    for name in names:
        hook = lambda layer, args, name=name: note(name, layer, args[0])  # noqa: E731
        layers[name].register_forward_pre_hook(hook)
    for part in x.to(model.device).split(LARGEST_BATCH):
        model(part)
    return {name: (square / counts[name]).sqrt() for name, square in squares.items()}


@torch.enable_grad()
def _from_loss(
    criterion: str, model: Model, groups: Sequence[ChannelGroup], context: Context, seed: int
) -> Scores:
    targets = context.teachers or ({"original": context.original} if context.original else {})
    if context.losses is None or not targets:
        raise UserError(f"prune: criterion={criterion} requires a distill section")
    student = copy.deepcopy(model).eval().requires_grad_(True)
    layers = dict(student.net.named_modules())
    readers = sorted(
        {m.layer for g in groups for m in g.members if _reads_channels(layers.get(m.layer), m)}
    )
    weights = [cast("Tensor", layers[name].weight) for name in readers]
    total = [torch.zeros(len(g.score_C), dtype=torch.float64) for g in groups]
    for gradients in _gradients(context.losses(student, targets, BATCHES, seed), weights):
        parts = dict(zip(readers, zip(weights, gradients, strict=True), strict=True))
        for number, group in enumerate(groups):
            score_C = torch.zeros_like(total[number])
            for member in group.members:
                if _reads_channels(layers.get(member.layer), member):
                    weight, gradient = parts[member.layer]
                    product = weight * gradient
                    value = product if criterion == "taylor" else product.square() / 2
                    value_N = _per_channel(layers[member.layer], "in", value)
                    score_C += _by_unit(member, value_N, len(group.score_C))
            total[number] += score_C.abs()
    return [(score_C / BATCHES).float() for score_C in total]


def _gradients(losses: Iterator[Tensor], weights: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    for loss in losses:
        yield torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
