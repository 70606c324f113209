"""Low-bit weight grids: fit them, and train on them with a straight-through estimator."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssdistill.artifacts.coding.codes import Uniform

Clip = Literal["mse", "max"]
RANGE_FRACTIONS = (1.0, 0.92, 0.85, 0.78, 0.71, 0.64, 0.57, 0.5, 0.43, 0.36, 0.29)
"""Parts of a channel's range that ``mse`` tries to spread the grid over."""
REFINEMENTS = 3
"""Least-squares steps of the scale after that; each can only lower the error."""
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
"""Layers whose weight has its output channels (or its entries) along the first axis."""
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding


class GridOptions(TypedDict, total=False):
    """Keyword arguments of :func:`quantize_weight`."""

    per_channel: bool
    symmetric: bool
    clip: Clip


def weights_of(net: nn.Module) -> dict[str, Weighted]:
    """The layers whose weights can be put on a grid, by the state dict key of the weight.

    A weight that several layers share is named once, after the first of them.
    """
    layers: dict[str, Weighted] = {}
    seen_ids: set[int] = set()
    for name, module in net.named_modules():
        # An attention layer takes its output projection apart: it never calls it.
        if isinstance(module, KINDS) and id(module.weight) not in seen_ids:
            seen_ids.add(id(module.weight))
            layers[f"{name}.weight" if name else "weight"] = module
    return layers


def quantize_weight(
    weight: Tensor,
    bits: int,
    *,
    per_channel: bool = True,
    symmetric: bool = True,
    clip: Clip = "mse",
) -> tuple[Tensor, Uniform]:
    """The nearest tensor of at most ``2 ** bits`` different values a channel, evenly spaced.

    Args:
        weight: (C, …) of any further shape, finite; left as it is.
        bits: 2 to 8.
        per_channel: a scale for each of the C channels instead of one for all.
        symmetric: integers from ``1 - 2 ** (bits - 1)`` to its opposite, without a zero point;
            otherwise from 0 to ``2 ** bits - 1`` with one, which
            lies between two integers where no weight is exactly zero.
        clip: ``max`` spreads the grid over all of a channel; ``mse`` over as much of it as
            leaves the least squared error: a part of the range (Nagel et al., 2021,
            arXiv:2106.08295, section 3.1), then the least-squares scale of the integers found.

    Returns:
        the weight that inference uses, and the integers and scales it decodes from exactly.
    """
    rows_CK = weight.detach().float().reshape(len(weight) if per_channel else 1, -1)
    low, high = _limits(bits, symmetric)
    # What was set to zero stays zero: there, zero has to be one of the values.
    whole = bool((rows_CK == 0).any())
    first, *others = RANGE_FRACTIONS if clip == "mse" else RANGE_FRACTIONS[:1]
    grid = _grid(rows_CK * first, low, high, whole)
    best = _better_grid(rows_CK, grid, None, (low, high))
    for fraction in others:
        best = _better_grid(rows_CK, _grid(rows_CK * fraction, low, high, whole), best, (low, high))
    for _ in range(REFINEMENTS if clip == "mse" else 0):
        fitted = _fitted(rows_CK, best[0], (low, high), whole)
        best = _better_grid(rows_CK, fitted, best, (low, high))
    coded = _coded(weight, rows_CK, best[0], bits, symmetric)
    return coded.decode().to(weight), coded


Grid = tuple[Tensor, Tensor]
"""Scale and zero point of every row."""


def _limits(bits: int, symmetric: bool) -> tuple[int, int]:
    top = 2 ** (bits - 1) - 1
    return (-top, top) if symmetric else (0, 2**bits - 1)


def _grid(rows_CK: Tensor, low: int, high: int, whole: bool) -> Grid:
    """Min-max grid of every row, zero included."""
    if low < 0:
        scale_C = rows_CK.abs().amax(1) / high
        return _storable(scale_C), torch.zeros_like(scale_C)
    least_C, most_C = rows_CK.amin(1).clamp(max=0), rows_CK.amax(1).clamp(min=0)
    scale_C = _storable((most_C - least_C) / high)
    return scale_C, _zero(-least_C / scale_C, high, whole)


def _fitted(rows_CK: Tensor, grid: Grid, limits: tuple[int, int], whole: bool) -> Grid:
    """Least-squares grid for the integers that ``grid`` assigns."""
    scale_C, zero_C = grid
    steps_CK = _integers(rows_CK, grid, *limits)
    if limits[0] < 0 or whole:
        steps_CK -= zero_C[:, None]
        mean_C, target_CK = torch.zeros_like(scale_C), rows_CK
    else:
        mean_C = steps_CK.mean(1)
        steps_CK -= mean_C[:, None]
        target_CK = rows_CK - rows_CK.mean(1, keepdim=True)
    fitted_scale_C = (target_CK * steps_CK).sum(1) / steps_CK.square().sum(1).clamp(min=1e-12)
    fitted_scale_C = _storable(torch.where(fitted_scale_C > 0, fitted_scale_C, scale_C))
    if limits[0] < 0 or whole:
        return fitted_scale_C, zero_C
    return fitted_scale_C, _zero(mean_C - rows_CK.mean(1) / fitted_scale_C, limits[1], whole)


def _zero(zero_C: Tensor, high: int, whole: bool) -> Tensor:
    """Zero point rounded to 16 bits; fractional unless ``whole``."""
    return (zero_C.round() if whole else zero_C.half().float()).clamp(0, high)


def _storable(scale_C: Tensor) -> Tensor:
    """Scales that 16 bits hold exactly, where all of them are of a size that 16 bits hold."""
    scale_C = torch.where(scale_C > 0, scale_C, torch.ones_like(scale_C))
    limits = torch.finfo(torch.float16)
    if scale_C.min() < limits.tiny or scale_C.max() > limits.max:
        return scale_C
    return scale_C.half().float()


def _integers(rows_CK: Tensor, grid: Grid, low: int, high: int) -> Tensor:
    scale_C, zero_C = grid
    return (rows_CK / scale_C[:, None]).add_(zero_C[:, None]).round_().clamp_(low, high)


def _better_grid(
    rows_CK: Tensor, grid: Grid, best: tuple[Grid, Tensor] | None, limits: tuple[int, int]
) -> tuple[Grid, Tensor]:
    """Choose the grid of smaller squared error row by row; return it and its error."""
    scale_C, zero_C = grid
    residual_CK = _integers(rows_CK, grid, *limits)
    residual_CK.sub_(zero_C[:, None]).mul_(scale_C[:, None]).sub_(rows_CK)
    error_C = residual_CK.square_().sum(1)
    if best is None:
        return grid, error_C
    (old_scale_C, old_zero_C), old_error_C = best
    won_C = error_C < old_error_C
    better_grid = torch.where(won_C, scale_C, old_scale_C), torch.where(won_C, zero_C, old_zero_C)
    return better_grid, torch.where(won_C, error_C, old_error_C)


def _coded(weight: Tensor, rows_CK: Tensor, grid: Grid, bits: int, symmetric: bool) -> Uniform:
    integers = _integers(rows_CK, grid, *_limits(bits, symmetric)).reshape(weight.shape)
    scale_C, zero_C = (_narrowed(values_C) for values_C in grid)
    integers = integers.to("cpu", torch.int8 if symmetric else torch.uint8)
    return Uniform(scale_C, None if symmetric else zero_C, integers, bits)


def _narrowed(values_C: Tensor) -> Tensor:
    values_C = values_C.cpu()
    half_C = values_C.half()
    return half_C if torch.equal(half_C.float(), values_C) else values_C


class OnGrid(nn.Module):
    """A weight rounded to its grid in the forward pass and straight through in the backward.

    The scale is learned with it (Esser et al., ICLR 2020, arXiv:1902.08153, eq. 3), through its
    logarithm so that it stays positive and a learning rate means the same for every layer. What
    is zero in ``weight`` stays zero.
    """

    zero_C: Tensor
    kept: Tensor | None

    def __init__(self, coded: Uniform, weight: Tensor):
        super().__init__()
        self.bits = coded.bits
        self.low, self.high = _limits(coded.bits, coded.zero is None)
        scale_C = coded.scale.to(weight)
        self.log_scale_C = nn.Parameter(scale_C.log())
        zero_C = torch.zeros_like(scale_C) if coded.zero is None else coded.zero.to(weight)
        self.register_buffer("zero_C", zero_C)
        nonzero = weight.detach() != 0
        self.register_buffer("kept", None if nonzero.all() else nonzero)

    def forward(self, weight: Tensor) -> Tensor:
        """(C, …) -> the same shape, on the grid."""
        shape = (-1,) + (1,) * (weight.ndim - 1)
        scale, zero = self.log_scale_C.exp().view(shape), self.zero_C.view(shape)
        place = (self._masked(weight) / scale + zero).clamp(self.low, self.high)
        rounded = place + (place.round() - place).detach()
        return (rounded - zero) * scale

    def _masked(self, weight: Tensor) -> Tensor:
        return weight if self.kept is None else weight * self.kept

    @torch.no_grad()
    def coded(self, weight: Tensor) -> Uniform:
        """What ``weight`` is stored as on the grid that was learned."""
        rows_CK = self._masked(weight).float().reshape(len(self.log_scale_C), -1)
        grid = _storable(self.log_scale_C.detach().float().exp()), self.zero_C.float()
        return _coded(weight, rows_CK, grid, self.bits, self.low < 0)


@contextmanager
def on_grid(net: nn.Module, coded: Mapping[str, Uniform]) -> Iterator[dict[str, Uniform]]:
    """Train the weights of ``net`` on their grids inside the ``with`` block.

    On leaving they are plain weights again, exactly on the grid that was learned, without a
    trace of what held them there.

    Args:
        net: its layers' weights are replaced; state dict keys are other ones inside.
        coded: how each weight is stored, by the key in the state dict.

    Yields:
        an empty dictionary that holds the codes found, by the same keys, after leaving.
    """
    layers = weights_of(net)
    grids: dict[str, Uniform] = {}
    for key, code in coded.items():
        on_grid = OnGrid(code, layers[key].weight)
        parametrize.register_parametrization(layers[key], "weight", on_grid, unsafe=True)
    try:
        yield grids
    finally:
        for key in coded:
            # What has a parametrization is of a class that torch makes for it.
            held = cast("Any", layers[key]).parametrizations["weight"]
            grids[key] = held[0].coded(held.original)
            parametrize.remove_parametrizations(layers[key], "weight")
            with torch.no_grad():
                layers[key].weight.copy_(grids[key].decode())
