"""Exact nearest neighbors: cheap products find candidates, float64 decides among them.

::

    queries ──> candidates by bfloat16 ──> in doubt ──> by float32 ──> in doubt ──> the whole bank
                         │                                  │                             │
                      certain                            certain                          │
                         └──────────────────────────────────┴─────────────────────────────┤
                                                                            compared in float64
                                                                                          │
                                                                                   the k nearest

What decides is the same whatever the candidates came from, so the result depends on neither
hardware nor chunks. :class:`~ssdistill.label_free.candidates.Candidates` says when a query is
certain.

By hand: scikit-learn's brute force decides by products in float32, by which equal rows are not at
distance 0, breaks ties in no order, and runs on the CPU alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
from rich import get_console
from rich.progress import track
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.label_free.candidates import Candidates, find_candidates, precisions
from ssdistill.label_free.vectors import Distance, Vectors, as_rows

QUERIES = 2048
"""Queries in a chunk; their approximate similarities to a block take up to 128 MiB."""
EXACT = 256
"""Queries compared exactly with a block of the bank at a time (32 MiB)."""
NUMBERS = 2**20
"""Numbers in a chunk of exactly compared candidates (8 MiB)."""
TAIL = 2**32
"""Values of the lower half of a key."""


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


@torch.no_grad()
def nearest_others(
    embedding_ND: Tensor, k: int, rows_Q: Tensor | None = None, *, progress: bool = False
) -> Tensor:
    """Return the k images nearest to each image by cosine, nearest first, without itself.

    Args:
        embedding_ND: finite embeddings; compared where they are.
        rows_Q: images whose neighbors are searched, on the same device; default: all, in order.
        progress: a bar on the terminal.

    Returns:
        index_Qk, int64.

    Raises:
        UserError: no more than ``k`` images, or embeddings that are not finite.
    """
    bank_ND = as_rows(embedding_ND, "embeddings")
    if len(bank_ND) <= k:
        raise UserError(
            f"k={k} neighbors requested, but only {len(bank_ND)} images available; "
            "at least k + 1 required"
        )
    query_QD = bank_ND if rows_Q is None else bank_ND[rows_Q]
    pairs = neighbors(query_QD, bank_ND, k + 1, progress=progress)
    index_Qk = torch.cat([index_Bk for _, index_Bk in pairs])
    if rows_Q is None:
        rows_Q = torch.arange(len(bank_ND), device=index_Qk.device)
    # An image comes first but for its duplicates; push it to the end, wherever it is, and drop one.
    itself_last_Qk = (index_Qk == rows_Q[:, None]).int().argsort(dim=1, stable=True)
    return index_Qk.gather(1, itself_last_Qk)[:, :k]


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
    """Return closeness (B, k) and index of the k nearest, from the cheapest products that do."""
    keys_Bk = torch.empty(len(query_BD), k, dtype=torch.int64, device=bank.device)
    open_B = torch.arange(len(query_BD), device=bank.device)
    for precision in precisions(bank):
        candidates = find_candidates(query_BD[open_B], bank, k, precision)
        certain_B = candidates.certain_B(k)
        rows_B, open_B = open_B[certain_B], open_B[~certain_B]
        keys_Bk[rows_B] = _nearest_candidates(candidates.of(certain_B), query_BD[rows_B], bank, k)
        if not len(open_B):
            return _decoded(keys_Bk)
    for rows_B in open_B.split(EXACT):
        keys_Bk[rows_B] = _nearest_of_all(query_BD[rows_B], bank, k)
    return _decoded(keys_Bk)


def _nearest_candidates(candidates: Candidates, query_BD: Tensor, bank: Vectors, k: int) -> Tensor:
    """Return keys (B, k) of the nearest of every query's candidates, compared exactly."""
    index_BC, near_B = candidates.index_BC, candidates.near_B(k)
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


def _nearest_of_all(query_BD: Tensor, bank: Vectors, k: int) -> Tensor:
    """Return keys (B, k) of the nearest, comparing all pairs exactly."""
    best_Bk = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
    for start, block_mD in bank.blocks():
        index_m = torch.arange(start, start + len(block_mD), device=query_BD.device)
        keys_Bm = ranking_keys(exact(query_BD, block_mD, bank.distance), index_m)
        best_Bk = torch.cat([best_Bk, keys_Bm], 1)
        best_Bk = best_Bk.topk(min(k, best_Bk.shape[1]), dim=1, largest=False).values
    return best_Bk
