"""Find duplicates by equal bytes, and near-duplicates by cosine similarity of embeddings."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048
MOST_EDGES = 4_000_000
"""Pairs to collect before they are reduced to at most one per image."""


def equal_groups(digest_N: np.ndarray, readable_N: np.ndarray) -> list[list[int]]:
    """Return groups of two or more images with equal hashes, as numbers.

    Args:
        digest_N: (N,) hashes of 8 bytes or a multiple.
        readable_N: (N,) bool, the images to compare.
    """
    number_M = np.flatnonzero(readable_N)
    words_M2 = np.ascontiguousarray(digest_N[number_M]).view("<u8")
    words_M2 = words_M2.reshape(len(number_M), digest_N.dtype.itemsize // 8)
    _, group_M = np.unique(words_M2, axis=0, return_inverse=True)
    return _gathered(group_M.reshape(-1), number_M)


def near_groups(
    embedding_ND: Tensor,
    cosine: float,
    watched: Callable[[Iterable[tuple[range]]], Iterable[tuple[range]]] = iter,
) -> list[list[int]]:
    """Return groups of images connected by pairs of at least the given similarity.

    All pairs are compared, block by block, at a cost of N * N / 2 products of length D and the
    memory of one block and :data:`MOST_EDGES` pairs.

    Args:
        embedding_ND: finite; rows of zeros are similar to no image.
        cosine: smallest cosine similarity of a pair.
        watched: wraps the iteration over blocks of rows, for a progress bar.
    """
    count = len(embedding_ND)
    unit_ND = torch.nn.functional.normalize(embedding_ND.float(), dim=1)
    first, second = np.empty(0, np.int64), np.empty(0, np.int64)
    starts = range(0, count, BLOCK)
    for (rows,) in watched((range(s, min(s + BLOCK, count)),) for s in starts):
        start = rows.start
        rows_BD = unit_ND[start : start + BLOCK]
        for other in range(0, start + 1, BLOCK):
            similar_BB = rows_BD @ unit_ND[other : other + BLOCK].T >= cosine
            if other == start:
                similar_BB = similar_BB.tril(-1)
            pair_E2 = similar_BB.nonzero().numpy()
            first = np.concatenate([first, pair_E2[:, 0] + start])
            second = np.concatenate([second, pair_E2[:, 1] + other])
            if len(first) > MOST_EDGES:
                first, second = _reduced(first, second, count)
    return _gathered(_components(first, second, count), np.arange(count))


def _components(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _reduced(first: np.ndarray, second: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most one pair per image that preserve the connected components."""
    group_N = _components(first, second, count)
    _, representative, inverse_N = np.unique(group_N, return_index=True, return_inverse=True)
    least_N = representative[inverse_N.reshape(-1)]
    moved = np.flatnonzero(least_N != np.arange(count))
    return moved, least_N[moved]


def _gathered(group_M: np.ndarray, number_M: np.ndarray) -> list[list[int]]:
    """Return the numbers of each group of two or more, sorted by their first."""
    order = np.argsort(group_M, kind="stable")
    starts = np.flatnonzero(np.diff(group_M[order], prepend=-1)) if len(order) else order
    parts = np.split(number_M[order], starts[1:]) if len(order) else []
    return sorted(part.tolist() for part in parts if len(part) > 1)
