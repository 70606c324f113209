"""Candidates for nearest neighbors, from products of low precision and a bound on their error."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssdistill.label_free.vectors import Vectors

Precision = Literal["bfloat16", "float32"]
GROUP = 16
"""Size of a group of approximate values; often only its best one is read."""


class Candidates(NamedTuple):
    """The C rows of a bank with the largest approximate closeness to each of B queries.

    A value differs from the exact one by at most ``error_B``. What is approximated is the cosine;
    or, for Euclidean distances, minus half the squared distance plus half the query's square,
    which orders the rows of the bank alike.

    Attributes:
        value_BC: approximate values, falling.
        index_BC: their rows in the bank.
        error_B: bound on the error of a query's values.
        complete: whether they are all rows of the bank.
    """

    value_BC: Tensor
    index_BC: Tensor
    error_B: Tensor
    complete: bool

    def floor_B1(self, k: int) -> Tensor:
        """What the approximate value of a row among the k nearest reaches at least.

        The best k candidates are exactly at least (k-th value - error) close; so are the k
        nearest, which are no farther; so their approximate values are at least that - error.
        """
        return self.value_BC[:, k - 1 : k] - 2 * self.error_B[:, None]

    def certain_B(self, k: int) -> Tensor:
        """Whether the k nearest are among them: all other values lie below the floor."""
        return (self.value_BC[:, -1] < self.floor_B1(k)[:, 0]) | self.complete

    def near_B(self, k: int) -> Tensor:
        """How many, from the first on, can be among the k nearest."""
        return (self.value_BC >= self.floor_B1(k)).sum(1)

    def of(self, rows_B: Tensor) -> "Candidates":
        """Those of some of the queries."""
        value_BC, index_BC, error_B = (x_B[rows_B] for x_B in self[:3])
        return Candidates(value_BC, index_BC, error_B, self.complete)


def precisions(bank: Vectors) -> tuple[Precision, ...]:
    """Precisions worth trying, the cheapest first."""
    if bank.distance == "cosine" and has_fast_bf16(bank.device):
        return "bfloat16", "float32"
    return ("float32",)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are many times faster than float32 ones."""
    supports_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(supports_amx and supports_amx())
    )


def find_candidates(query_BD: Tensor, bank: Vectors, k: int, precision: Precision) -> Candidates:
    """Return more than k candidates for each query, or all rows of a small bank."""
    low = precision == "bfloat16"
    count = min(len(bank), 2 * k + 32 if low else k + 16)
    used_BD = query_BD.bfloat16() if low else query_BD
    value_BC = query_BD.new_empty(len(query_BD), 0)
    index_BC = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
    longest = most_lost = 0.0
    for start, block_mD, length, lost in bank.low_blocks() if low else _full_blocks(bank):
        block_value_Bm = used_BD @ block_mD.T
        if bank.distance == "euclidean":
            block_value_Bm -= block_mD.square().sum(1) / 2
        longest, most_lost = max(longest, length), max(most_lost, lost)
        best_BC, column_BC = _largest(block_value_Bm, min(count, len(block_mD)))
        value_BC = torch.cat([value_BC, best_BC.float()], 1)
        index_BC = torch.cat([index_BC, column_BC + start], 1)
        if start:
            value_BC, place_BC = value_BC.topk(min(count, value_BC.shape[1]), dim=1)
            index_BC = index_BC.gather(1, place_BC)
    norm_B = torch.linalg.vector_norm(query_BD, dim=1)
    error_B = _float32_error(norm_B, bank, longest)
    if low:
        lost_B = torch.linalg.vector_norm(query_BD - used_BD, dim=1)
        error_B += _bfloat16_error(norm_B, lost_B, longest, most_lost)
        # The result is rounded too; values below all candidates need no tighter bound.
        error_B += 2**-8 * value_BC.abs().amax(1)
    elif torch.get_float32_matmul_precision() != "highest":
        # Inputs are then rounded, at worst to bfloat16.
        error_B += 2**-7 * norm_B * longest
    return Candidates(value_BC, index_BC, error_B, complete=count == len(bank))


def _full_blocks(bank: Vectors) -> Iterator[tuple[int, Tensor, float, float]]:
    """As ``low_blocks``, in float32, of which nothing is lost."""
    for start, block_mD in bank.blocks():
        yield start, block_mD, block_mD.square().sum(1).max().item() ** 0.5, 0.0


def _largest(value_Bm: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest of every row, falling, and their columns.

    They lie in the ``count`` groups with the largest maxima: no other group holds a larger value.
    Finding the maxima is far cheaper than sorting.
    """
    rows, columns = value_Bm.shape
    groups = columns // GROUP
    if columns % GROUP or groups < 4 * count:
        return value_Bm.topk(count, dim=1)
    chosen_BC = value_Bm.view(rows, GROUP, groups).amax(1).topk(count, dim=1).indices
    member_G1 = groups * torch.arange(GROUP, device=value_Bm.device)[:, None]
    column_Bc = (chosen_BC[:, None] + member_G1).flatten(1)
    value_BC, place_BC = value_Bm.gather(1, column_Bc).topk(count, dim=1)
    return value_BC, column_Bc.gather(1, place_BC)


def _float32_error(norm_B: Tensor, bank: Vectors, longest: float) -> Tensor:
    """Bound (B,) on the error of float32 products, and of closeness, which is rounded to float32.

    For sums of D products the bound is taken to be 4 sqrt(D) 2**-24, twelve deviations of what is
    expected of random rounding (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).

    Args:
        norm_B: norms of the queries.
        longest: largest norm of a vector of the bank.
    """
    share = 2**-24 * (4 * bank.width**0.5 + 8)
    if bank.distance == "euclidean":
        return share * (norm_B + longest) ** 2
    return share * longest * norm_B + 2**-23


def _bfloat16_error(norm_B: Tensor, lost_B: Tensor, longest: float, most_lost: float) -> Tensor:
    """Bound (B,) on what rounding the factors q and b to bfloat16 changes of their product.

    It is at most |q| |b - b'| + |q - q'| |b'| (Cauchy-Schwarz).

    Args:
        norm_B, lost_B: norms of the queries, and of what rounding took from them.
        longest, most_lost: the largest of both in the bank.
    """
    return 1.01 * (norm_B * most_lost + lost_B * (longest + most_lost))
