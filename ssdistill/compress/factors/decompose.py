"""Decompose one layer into two or three factors: energy lost, cost, weights."""

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ssdistill.compress.factors.moments import Moments, Positions
from ssdistill.errors import UserError
from ssdistill.models.factorized import Factorized, Form, Plain, Rank, form_of

Method = Literal["data", "svd", "spatial", "tucker"]
FORMS: dict[str, Form] = {
    "data": "channel",
    "svd": "channel",
    "spatial": "spatial",
    "tucker": "tucker",
}
RIDGE = 1e-3
"""Least ridge of the regression of :func:`decompose_after`, in units of the mean variance."""
HOOI_ROUNDS = 5
"""Alternations of the two Tucker bases; from the HOSVD on, the error hardly moves after three."""


ONCE = Positions(1, 1, 1)


class Cost(NamedTuple):
    """Parameters of a layer and its multiply-accumulates for one input."""

    parameters: int
    macs: float


def layer_cost(
    layer: nn.Module, rank: Rank | None, method: Method, positions: Positions = ONCE
) -> Cost:
    """What ``layer`` costs in factors of ``rank``, or as it is where ``rank`` is None."""
    layer = cast("Plain", layer)  # form_of raises for others
    outs, ins, *kernel = layer.weight.shape
    height, width = kernel or (1, 1)
    before, between, after = positions
    biases = 0 if layer.bias is None else outs
    if rank is None:
        weights = outs * ins * height * width
        return Cost(weights + biases, weights * after)
    if method == "data":
        biases = outs  # the mean of what is cut off goes there
    form = form_of(layer, FORMS[method])
    if form == "tucker":
        r_in, r_out = (rank, rank) if isinstance(rank, int) else rank
        parts = (r_in * ins, before), (r_in * r_out * height * width, after), (r_out * outs, after)
    else:
        r = cast("int", rank)  # only a Tucker form has two
        if form == "spatial":
            parts = (r * ins * height, between), (r * outs * width, after)
        else:
            parts = (r * ins * height * width, after), (r * outs, after)
    weights = sum(count for count, _ in parts)
    return Cost(weights + biases, sum(count * places for count, places in parts))


def largest_ranks(layer: nn.Module, method: Method) -> tuple[int, ...]:
    """Full rank of a layer; for ``tucker`` of a kernel, of inputs and of outputs."""
    layer = cast("Plain", layer)  # form_of raises for others
    outs, ins, *kernel = layer.weight.shape
    height, width = kernel or (1, 1)
    form = form_of(layer, FORMS[method])
    if form == "tucker":
        return min(ins, outs * height * width), min(outs, ins * height * width)
    if form == "spatial":
        return (min(ins * height, outs * width),)
    return (min(outs, ins * height * width),)


def spectrum(layer: nn.Module, method: Method, stats: Moments | None = None) -> tuple[Tensor, ...]:
    """The energies, descending, whose tail is what a rank loses.

    Returns:
        one vector: squared singular values of the weight as a matrix (``svd``, ``spatial``),
        or variances along the principal axes of the output (``data``). For ``tucker`` two, of
        the unfoldings along inputs and along outputs; the sum of their tails bounds the loss.

    Raises:
        UserError: ``data`` without the statistics of the layer.
    """
    form = form_of(layer, FORMS[method])
    weight = cast("Plain", layer).weight.detach().double()  # form_of raises for others
    if form == "tucker":
        return _energies(weight.transpose(0, 1).flatten(1)), _energies(weight.flatten(1))
    if form == "spatial":
        return (_energies(_columns_by_rows(weight)),)
    if method == "data":
        values_O, _ = _axes(_required_moments(stats).covariance_OO)
        return (values_O[: largest_ranks(layer, method)[0]],)
    return (_energies(weight.flatten(1)),)


@torch.no_grad()
def decompose(
    layer: nn.Module, method: Method, rank: Rank, stats: Moments | None = None
) -> Factorized:
    """The best factors of ``rank`` for ``layer``.

    - ``svd``: W ~ U U^T W, with U the leading left singular vectors of the weight (O, I kh kw);
      no factorization of this rank is closer to the weight.
    - ``data``: y - mean ~ U U^T (y - mean), with U the leading principal axes of the output y
      on the inputs of ``stats``, where no other is closer to the output (Zhang et al., TPAMI
      2016, arXiv:1505.06798, section 3.1). What it does to the mean goes into the bias.
    - ``spatial``: SVD of the weight as a matrix (I kh, O kw), which gives the closest vertical
      and horizontal kernels (Jaderberg et al., BMVC 2014, arXiv:1405.3866, scheme 2).
    - ``tucker``: Tucker-2 by HOSVD and some rounds of HOOI (Kim et al., ICLR 2016,
      arXiv:1511.06530).

    Args:
        layer: ``nn.Linear`` or ``nn.Conv2d`` without groups; it is left as it is.
        rank: for ``tucker`` (r_in, r_out).
        stats: for ``data``, see :func:`output_stats`.

    Raises:
        UserError: a layer that has no factorization, a rank below 1 or above the largest there
            is, or ``data`` without statistics.
    """
    form = form_of(layer, FORMS[method])
    layer = cast("Plain", layer)  # form_of raises for others
    ranks = (rank, rank) if isinstance(rank, int) else rank
    limits = largest_ranks(layer, method)
    if any(not 1 <= r <= limit for r, limit in zip(ranks, limits, strict=False)):
        limit = " and ".join(map(str, limits))
        raise UserError(f"{method}: rank must be between 1 and {limit}, got {rank}")
    factors = Factorized.like(layer, rank, form)
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.double()
    if form == "tucker":
        _fill_tucker(factors, weight, *ranks)
    elif form == "spatial":
        _fill_spatial(factors, weight)
    elif method == "data":
        stats = _required_moments(stats)
        _, axes_OO = _axes(stats.covariance_OO)
        basis_OR = axes_OO[:, : min(ranks)]
        _fill_channel(factors, weight, basis_OR, basis_OR.T)
        mean_O = stats.mean_O if bias is None else stats.mean_O - bias
        bias = stats.mean_O - basis_OR @ (basis_OR.T @ mean_O)
    else:
        _, axes_OO = _axes(weight.flatten(1) @ weight.flatten(1).T)
        basis_OR = axes_OO[:, : min(ranks)]
        _fill_channel(factors, weight, basis_OR, basis_OR.T)
    set_bias(factors, bias)
    return factors


@torch.no_grad()
def decompose_after(layer: nn.Module, rank: int, joint: Moments) -> Factorized:
    """Like ``data``, but compensate for the loss of the factors before ``layer``.

    The factors are the best of this rank that lead from the outputs the layer has behind those
    factors to the outputs it had in the whole network (Zhang et al., TPAMI 2016,
    arXiv:1505.06798, section 3.3, eq. 11): a regression of reduced rank, whose ridge pulls
    towards no correction.

    Args:
        layer: as for :func:`decompose`.
        joint: of 2 O channels: outputs in the whole network, then those behind the factors.
    """
    factors = Factorized.like(layer, rank, "channel")
    layer = cast("Plain", layer)  # Factorized.like raises for others
    outs = len(joint.mean_O) // 2
    covariance = joint.covariance_OO
    behind_OO, cross_OO = covariance[outs:, outs:], covariance[:outs, outs:]
    # The fewer outputs there were to look at for every channel, the less they can tell.
    ridge = max(RIDGE, outs / joint.count)
    ridge *= behind_OO.diagonal().mean().clamp(min=1e-30)  # a layer may put out zeros
    identity_OO = torch.eye(outs).to(behind_OO)
    behind_OO = behind_OO + ridge * identity_OO
    map_OO = torch.linalg.solve(behind_OO, cross_OO.T + ridge * identity_OO).T
    basis_OR = _leading(map_OO @ torch.linalg.cholesky(behind_OO), rank)
    reduce_RO = basis_OR.T @ map_OO
    _fill_channel(factors, layer.weight.detach().double(), basis_OR, reduce_RO)
    mean_O = joint.mean_O[outs:]
    if layer.bias is not None:
        mean_O = mean_O - layer.bias.double()
    set_bias(factors, joint.mean_O[:outs] - basis_OR @ (reduce_RO @ mean_O))
    return factors


@torch.no_grad()
def set_bias(factors: Factorized, bias_O: Tensor | None) -> None:
    """Give ``factors`` this output bias, whether or not there was one."""
    last = factors.expand
    bias = None if bias_O is None else nn.Parameter(bias_O.to(last.weight))
    last.register_parameter("bias", bias)
    if bias is not None:
        bias.requires_grad_(last.weight.requires_grad)


def _fill_channel(
    factors: Factorized, weight: Tensor, expand_OR: Tensor, reduce_RO: Tensor
) -> None:
    factors.expand.weight.copy_(expand_OR.reshape(factors.expand.weight.shape))
    reduced = reduce_RO @ weight.flatten(1)
    factors.reduce.weight.copy_(reduced.reshape(factors.reduce.weight.shape))


def _fill_spatial(factors: Factorized, weight: Tensor) -> None:
    outs, ins, height, width = weight.shape
    left, values, right = torch.linalg.svd(_columns_by_rows(weight), full_matrices=False)
    rank, root = factors.rank, values.sqrt()
    columns = (left * root)[:, :rank].T.reshape(rank, ins, height, 1)
    rows = (root[:, None] * right)[:rank].reshape(rank, outs, 1, width)
    factors.reduce.weight.copy_(columns)
    factors.expand.weight.copy_(rows.transpose(0, 1))


def _fill_tucker(factors: Factorized, weight: Tensor, r_in: int, r_out: int) -> None:
    outs_OR = _leading(weight.flatten(1), r_out)
    for _ in range(HOOI_ROUNDS):
        narrow = torch.einsum("oihw,or->irhw", weight, outs_OR)
        ins_IR = _leading(narrow.flatten(1), r_in)
        narrow = torch.einsum("oihw,ir->orhw", weight, ins_IR)
        outs_OR = _leading(narrow.flatten(1), r_out)
    factors.reduce.weight.copy_(ins_IR.T[..., None, None])
    factors.core.weight.copy_(torch.einsum("os,orhw->srhw", outs_OR, narrow))
    factors.expand.weight.copy_(outs_OR[..., None, None])


def _columns_by_rows(weight: Tensor) -> Tensor:
    """(I kh, O kw)."""
    return weight.permute(1, 2, 0, 3).flatten(0, 1).flatten(1)


def _energies(matrix: Tensor) -> Tensor:
    """Squared singular values, descending."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(small @ small.T).flip(0).clamp(min=0)


def _axes(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not negative, and eigenvectors in columns."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    return _axes(matrix @ matrix.T)[1][:, :rank]


def _required_moments(stats: Moments | None) -> Moments:
    if stats is None:
        raise UserError("method=data requires statistics of the layer's outputs")
    return stats
