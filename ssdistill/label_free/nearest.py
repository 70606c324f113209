"""Exact nearest neighbors: a fast approximate search, then an exact decision."""

from collections.abc import Iterator
from typing import Any

import torch
from rich import get_console
from rich.progress import track
from torch import Tensor

from ssdistill.label_free.vectors import Distance, Vectors

QUERIES = 2048
"""Queries in a chunk; their approximate similarities to a block take up to 128 MiB."""
EXACT = 256
"""Queries compared exactly with a block of the bank at a time (32 MiB)."""
GROUP = 16
"""Size of a group of approximate similarities; often only its best one is read."""
NUMBERS = 2**20
"""Numbers in a chunk of exactly compared candidates (8 MiB)."""
TAIL = 2**32


@torch.no_grad()
def neighbors(
    query_ND: Any,
    bank_MD: Any,
    k: int,
    *,
    distance: Distance = "cosine",
    device: Any = None,
    progress: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the k nearest bank rows of every query, chunk by chunk of queries.

    Similarities are computed in float64 and rounded to float32; ties go to the smaller index.
    Results do not depend on chunks: low-precision products only select candidates, and queries
    for which their rounding leaves doubt are repeated with higher precision.

    Args:
        query_ND, bank_MD: finite features, torch or numpy; maps and float16 are read in chunks.
        k: at most M.
        distance: ``cosine`` or ``euclidean`` (rows as they are).
        device: where to compare; default: where the bank is.
        progress: a bar on the terminal.

    Yields:
        closeness_Bk, falling: the cosine, or the Euclidean distance negated; and index_Bk.
    """
    bank = Vectors(bank_MD, distance, device)
    queries = Vectors(query_ND, distance, bank.device, keep=False)
    chunks = track(
        queries.blocks(QUERIES),
        "neighbors",
        total=-(-len(queries) // QUERIES),
        transient=True,
        disable=not (progress and get_console().is_terminal),
    )
    for _, query_BD in chunks:
        yield _nearest(query_BD, bank, k)


def exact(query_BD: Tensor, block_mD: Tensor, distance: Distance = "cosine") -> Tensor:
    """Exact closeness (B, m) float32 of prepared rows, all pairs."""
    query_BD, block_mD = query_BD.double(), block_mD.double()
    if distance == "cosine":
        return (query_BD @ block_mD.T).float()
    # Not by a product: of rows far from zero that are equal, it would not find distance 0.
    direct = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(query_BD, block_mD, compute_mode=direct).float()


def ranking_keys(closeness: Tensor, tail: Tensor) -> Tensor:
    """int64 keys that rise as closeness falls and, for ties, as ``tail`` (0 … 2**32 - 1) rises."""
    # Floats are ordered as their bits are, but for the sign; adding 0 turns -0 into 0.
    bits = (closeness + 0.0).view(torch.int32)
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (falling.long() * TAIL) | tail


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    bits = ~(keys >> 32).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), keys & (TAIL - 1)


def _nearest(query_BD: Tensor, bank: Vectors, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of every query, from the cheapest precision that decides them.

    ::

        all queries ──> bfloat16 ──> in doubt ──> float32 ──> in doubt ──> all pairs in float64
                           │                         │                         │
                           └── certain: candidates compared in float64 ────────┴──> keys (B, k)

    Invariants:
        - An approximate value differs from the exact one (the cosine; or minus half the squared
          distance, up to a constant of the query) by at most ``error_B``.
        - A row among the k nearest has an approximate value of at least ``floor_B1``: the k-th
          best value minus twice the error.
        - A query is certain if its worst candidate is below the floor (so that no row outside
          the candidates can reach it), or if all rows are candidates.
        - Keys are always computed from float64 closeness, so every path gives the same result.
    """
    keys_Bk = torch.empty(len(query_BD), k, dtype=torch.int64, device=bank.device)
    open_B = torch.arange(len(query_BD), device=bank.device)
    quick = bank.distance == "cosine" and has_fast_bf16(bank.device)
    for low in (True, False) if quick else (False,):
        part_BD = query_BD[open_B]
        value_BC, index_BC, error_B = _rough(part_BD, bank, k, low)
        # The k nearest have approximate values of at least this.
        floor_B1 = value_BC[:, k - 1 : k] - 2 * error_B[:, None]
        complete = value_BC.shape[1] == len(bank)
        sure_B = (value_BC[:, -1] < floor_B1[:, 0]) | complete
        # Values fall along a row: rows above the floor come first.
        near_B = (value_BC[sure_B] >= floor_B1[sure_B]).sum(1)
        keys_Bk[open_B[sure_B]] = _decide(part_BD[sure_B], bank, index_BC[sure_B], near_B, k)
        open_B = open_B[~sure_B]
        if not len(open_B):
            return _decoded(keys_Bk)
    for rows_B in open_B.split(EXACT):
        keys_Bk[rows_B] = _scan(query_BD[rows_B], bank, k)
    return _decoded(keys_Bk)


def _rough(query_BD: Tensor, bank: Vectors, k: int, low: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return approximate values (B, C) of the best candidates, their index and error bound.

    What rounding q and b to bfloat16 changes of their product is at most |q| |b - b'| + |q - q'|
    |b'| (Cauchy-Schwarz), and the result is rounded too. For sums in float32 of D products the
    bound is taken to be 4 sqrt(D) 2**-24, twelve deviations of what is expected of random
    rounding (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    """
    kept = min(len(bank), 2 * k + 32 if low else k + 16)
    used_BD = query_BD.bfloat16() if low else query_BD
    best_BC = query_BD.new_empty(len(query_BD), 0)
    index_BC = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
    reach = lost = 0.0
    for start, block_mD, *of_block in bank.low_blocks() if low else bank.blocks():
        value_Bm = used_BD @ block_mD.T
        if not low:
            square_m = block_mD.square().sum(1)
            of_block = square_m.max().item() ** 0.5, 0.0
            if bank.distance == "euclidean":
                value_Bm -= square_m / 2
        reach, lost = max(reach, of_block[0]), max(lost, of_block[1])
        value_BC, column_BC = _largest(value_Bm, min(kept, len(block_mD)))
        best_BC = torch.cat([best_BC, value_BC.float()], 1)
        index_BC = torch.cat([index_BC, column_BC + start], 1)
        if best_BC.shape[1] > kept:
            best_BC, place_BC = best_BC.topk(kept, dim=1)
            index_BC = index_BC.gather(1, place_BC)
    return best_BC, index_BC, _error(query_BD, used_BD, best_BC, bank, reach, lost)


def _largest(value_Bm: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the ``kept`` largest of every row, falling, and their columns.

    They lie in the ``kept`` groups with the largest maxima: no other group holds a larger value.
    Finding the maxima is far cheaper than sorting.
    """
    rows, columns = value_Bm.shape
    groups = columns // GROUP
    if columns % GROUP or groups < 4 * kept:
        return value_Bm.topk(kept, dim=1)
    chosen_BC = value_Bm.view(rows, GROUP, groups).amax(1).topk(kept, dim=1).indices
    member_G1 = groups * torch.arange(GROUP, device=value_Bm.device)[:, None]
    column_Bc = (chosen_BC[:, None] + member_G1).flatten(1)
    value_BC, place_BC = value_Bm.gather(1, column_Bc).topk(kept, dim=1)
    return value_BC, column_Bc.gather(1, place_BC)


def _error(
    query_BD: Tensor, used_BD: Tensor, best_BC: Tensor, bank: Vectors, reach: float, lost: float
) -> Tensor:
    """Bound the error (B,) of approximate values and of closeness, which is rounded to float32.

    Args:
        used_BD: the queries as multiplied (rounded).
        reach, lost: largest norm of a bank vector, and largest norm of its rounding error.
    """
    norm_B = torch.linalg.vector_norm(query_BD, dim=1)
    share = 2**-24 * (4 * bank.width**0.5 + 8)
    if bank.distance == "euclidean":
        error_B = share * (norm_B + reach) ** 2
    else:
        error_B = share * reach * norm_B + 2**-23
    if used_BD.dtype == torch.bfloat16:
        lost_B = torch.linalg.vector_norm(query_BD - used_BD, dim=1)
        error_B += 1.01 * (norm_B * lost + lost_B * (reach + lost))
        # Covers the rounding of results; values below all candidates need no tighter bound.
        error_B += 2**-8 * best_BC.abs().amax(1)
    elif torch.get_float32_matmul_precision() != "highest":
        # Inputs are then rounded, at worst to bfloat16.
        error_B += 2**-7 * norm_B * reach
    return error_B


def _decide(query_BD: Tensor, bank: Vectors, index_BC: Tensor, near_B: Tensor, k: int) -> Tensor:
    """Return keys (B, k) of the nearest of the first ``near_B`` candidates of every row."""
    keys_Bk = index_BC.new_empty(len(query_BD), k)
    if not len(query_BD):
        return keys_Bk
    size = max(1, NUMBERS // (index_BC.shape[1] * bank.width))
    # Group queries with similar numbers of candidates, so that little padding is compared.
    for rows_b in near_B.argsort().split(size):
        index_bc = index_BC[rows_b, : int(near_B[rows_b[-1]])]
        candidate_bcD = bank.take(index_bc.reshape(-1)).double().view(*index_bc.shape, -1)
        query_b1D = query_BD[rows_b, None].double()
        if bank.distance == "cosine":
            closeness_bc = (candidate_bcD @ query_b1D.mT)[..., 0]
        else:
            closeness_bc = -(candidate_bcD - query_b1D).square().sum(2).sqrt()
        keys_bc = ranking_keys(closeness_bc.float(), index_bc)
        keys_Bk[rows_b] = keys_bc.topk(k, dim=1, largest=False).values
    return keys_Bk


def _scan(query_BD: Tensor, bank: Vectors, k: int) -> Tensor:
    """Return keys (B, k) of the nearest, comparing all pairs exactly."""
    best_Bk = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
    for start, block_mD in bank.blocks():
        index_m = torch.arange(start, start + len(block_mD), device=query_BD.device)
        keys_Bm = ranking_keys(exact(query_BD, block_mD, bank.distance), index_m)
        best_Bk = torch.cat([best_Bk, keys_Bm], 1)
        best_Bk = best_Bk.topk(min(k, best_Bk.shape[1]), dim=1, largest=False).values
    return best_Bk


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are many times faster than float32 ones."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(known and known())
