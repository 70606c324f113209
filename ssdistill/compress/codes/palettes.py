"""Codebooks of weights: batched one-dimensional k-means."""

import torch
from torch import Tensor

ROUNDS, LAST_ROUNDS = 30, 300
KNOTS = 4096
MOVES = 32
AT_ONCE = 2**23
"""Numbers to look at side by side, for the memory's sake."""
Rows = tuple[Tensor, Tensor, Tensor]
"""Sorted numbers (R, N), the sums of the first of them (R, N + 1), how many count (R, 1)."""


def codebooks(values_RN: Tensor, size: int, counts_R: Tensor | None = None) -> Tensor:
    """Fit a codebook of ``size`` values to each row by least squares.

    Lloyd's iterations (IEEE Trans. Inf. Theory 1982) on sorted numbers, from clusters as dense as
    the cube root of the density of the numbers, which is best for many of them (Panter and Dite,
    Proc. IRE 1951). Then, as long as that helps, clusters are joined where it costs least and
    split where it gains most. No chance in it. Where a row has no more than ``size`` different
    numbers, it gets exactly these.

    Args:
        values_RN: finite numbers.
        size: how many numbers a codebook has.
        counts_R: how many numbers, from the left, count in each row; at least 1. All by default.

    Returns:
        ascending float32 (R, size).
    """
    if counts_R is None:
        counts_R = torch.full(values_RN.shape[:1], values_RN.shape[1])
    rows = max(AT_ONCE // values_RN.shape[1], 1)
    parts = zip(values_RN.split(rows), counts_R.split(rows), strict=True)
    return torch.cat([_codebooks(values, counts, size) for values, counts in parts])


def _codebooks(values_RN: Tensor, counts_R: Tensor, size: int) -> Tensor:
    counts_R1 = counts_R[:, None]
    outside_RN = torch.arange(values_RN.shape[1]) >= counts_R1
    sorted_RN = values_RN.masked_fill(outside_RN, torch.inf).sort(dim=1).values.double()
    inside_RN = sorted_RN.masked_fill(outside_RN, 0.0)
    sums_RN = torch.nn.functional.pad(inside_RN.cumsum(1), (1, 0))
    rows = (sorted_RN, sums_RN, counts_R1)
    best_RK, least_R = _lloyd(rows, _initial_codebook(sorted_RN, counts_R1, size))
    for moves in _halvings(size):
        for _ in range(MOVES):
            book_RK, error_R = _lloyd(rows, _move(rows, best_RK, moves))
            better_R = error_R < least_R
            best_RK = torch.where(better_R[:, None], book_RK, best_RK)
            least_R = torch.minimum(error_R, least_R)
            if not better_R.any():
                break
    best_RK, _ = _lloyd(rows, best_RK, LAST_ROUNDS)
    return _exact(sorted_RN, outside_RN, best_RK).float().sort(dim=1).values


def _halvings(size: int) -> list[int]:
    """How many clusters are moved at once: many at first, one in the end; none of two."""
    counts = [size // 8] if size >= 8 else [1] if size > 2 else []
    while counts and counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def _lloyd(rows: Rows, book_RK: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Return the codebooks that Lloyd's iterations end at, and their squared errors.

    Errors are less the sum of squares that all codebooks have in common.
    """
    for _ in range(rounds):
        numbers_RK, totals_RK = _clusters(rows, book_RK)
        means_RK = torch.where(numbers_RK > 0, totals_RK / numbers_RK.clamp(min=1), book_RK)
        if torch.equal(means_RK, book_RK):
            break
        book_RK = means_RK
    numbers_RK, totals_RK = _clusters(rows, book_RK)
    return book_RK, (book_RK * (numbers_RK * book_RK - 2 * totals_RK)).sum(1)


def _move(rows: Rows, book_RK: Tensor, moves: int) -> Tensor:
    """Codebooks in which ``moves`` pairs of neighbors have become one and as many clusters two."""
    numbers_RK, totals_RK = _clusters(rows, book_RK)
    left_RK, left_totals_RK = _clusters(rows, book_RK, halves=True)
    right_RK = numbers_RK - left_RK
    ends = (
        left_totals_RK / left_RK.clamp(min=1),
        (totals_RK - left_totals_RK) / right_RK.clamp(min=1),
    )
    gain_RK = left_RK * right_RK / numbers_RK.clamp(min=1) * (ends[0] - ends[1]).square()
    one, two = numbers_RK[:, :-1], numbers_RK[:, 1:]
    loss_RK = one * two / (one + two).clamp(min=1) * book_RK.diff(dim=1).square()
    split_RM = gain_RK.topk(moves, dim=1).indices
    # A pair of which one is split is no pair to join.
    for shift in (0, -1):
        loss_RK.scatter_(1, (split_RM + shift).clamp(0, loss_RK.shape[1] - 1), torch.inf)
    join_RM = loss_RK.topk(moves, dim=1, largest=False).indices
    # Of two neighbors the first takes the middle; the second is free for half a split cluster.
    book_RK = book_RK.scatter(1, split_RM, ends[0].gather(1, split_RM))
    middle_RM = (totals_RK.gather(1, join_RM) + totals_RK.gather(1, join_RM + 1)) / (
        numbers_RK.gather(1, join_RM) + numbers_RK.gather(1, join_RM + 1)
    ).clamp(min=1)
    book_RK = book_RK.scatter(1, join_RM, middle_RM)
    return book_RK.scatter(1, join_RM + 1, ends[1].gather(1, split_RM)).sort(dim=1).values


def _initial_codebook(sorted_RN: Tensor, counts_R1: Tensor, size: int) -> Tensor:
    """A codebook as dense as the cube root of the density of the numbers."""
    knots = min(sorted_RN.shape[1], KNOTS)
    places_RM = (torch.linspace(0, 1, knots).double() * (counts_R1 - 1)).round().long()
    knots_RM = sorted_RN.gather(1, places_RM)
    if knots < 2:
        return knots_RM.expand(-1, size).contiguous()
    reached_RM = knots_RM.diff(dim=1).pow(2 / 3).cumsum(1)
    steps_K = (torch.arange(size).double() + 0.5) / size
    quantile_RK = (reached_RM[:, -1:] * steps_K).contiguous()
    place_RK = torch.searchsorted(reached_RM, quantile_RK).clamp(max=knots - 2)
    return (knots_RM.gather(1, place_RK) + knots_RM.gather(1, place_RK + 1)) / 2


def _clusters(rows: Rows, book_RK: Tensor, halves: bool = False) -> tuple[Tensor, Tensor]:
    """How many numbers are nearest to each of the codebook, and their sum.

    Args:
        halves: count only those below the number of the codebook.
    """
    sorted_RN, sums_RN, counts_R1 = rows
    middles = ((book_RK[:, 1:] + book_RK[:, :-1]) / 2).contiguous()
    ends = torch.searchsorted(sorted_RN, middles).minimum(counts_R1)
    starts = torch.cat([torch.zeros_like(counts_R1), ends], dim=1)
    ends = torch.cat([ends, counts_R1], dim=1)
    if halves:
        ends = torch.searchsorted(sorted_RN, book_RK.contiguous()).minimum(ends).maximum(starts)
    return ends - starts, sums_RN.gather(1, ends) - sums_RN.gather(1, starts)


def _exact(sorted_RN: Tensor, outside_RN: Tensor, book_RK: Tensor) -> Tensor:
    """``book_RK``, but the very numbers of the rows in which there are few enough."""
    new_RN = torch.ones_like(outside_RN)
    new_RN[:, 1:] = sorted_RN[:, 1:] != sorted_RN[:, :-1]
    new_RN &= ~outside_RN
    few_R = new_RN.sum(1) <= book_RK.shape[1]
    if not few_R.any():
        return book_RK
    rank_RN = (new_RN.cumsum(1) - 1).clamp(max=book_RK.shape[1] - 1)
    inside_RN = sorted_RN.masked_fill(outside_RN, -torch.inf)
    largest_RK = inside_RN.amax(1, keepdim=True).expand_as(book_RK)
    filled_RN = torch.where(outside_RN, inside_RN.amax(1, keepdim=True), sorted_RN)
    exact_RK = largest_RK.scatter(1, rank_RN, filled_RN)
    return torch.where(few_R[:, None], exact_RK, book_RK)


def nearest_index(values_RN: Tensor, book_RK: Tensor) -> Tensor:
    """Index of the nearest codebook value for each number; uint8 (R, N).

    Args:
        book_RK: ascending, at most 256 numbers a row.
    """
    book_RK = book_RK.double()
    middles = ((book_RK[:, 1:] + book_RK[:, :-1]) / 2).contiguous()
    return torch.searchsorted(middles, values_RN.double().contiguous()).to(torch.uint8)
