"""Nearest neighbors of training images by a network's embedding."""

import numpy as np
import torch
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError
from ssdistill.label_free.features import as_features

QUERIES, BANK = 1024, 16384
"""Rows and columns of similarities held at a time (64 MiB)."""


@torch.no_grad()
def nearest_neighbors(embedding_ND: Tensor, k: int = 5) -> np.ndarray:
    """Return the ``k`` nearest other images of each image, nearest first.

    Distances are Euclidean between vectors of length 1, which orders images as cosine similarity
    does; this is how BINGO (arXiv:2107.01691) bags images. All pairs are compared, block by
    block, on the device of ``embedding_ND``. Of equally near images those of lower number
    come first.

    Returns:
        neighbors_NK, int64.

    Raises:
        UserError: no more than ``k`` images, or embeddings that are not finite.
    """
    z_ND = functional.normalize(as_features(embedding_ND, "embeddings"), dim=1)
    count = len(z_ND)
    if count <= k:
        raise UserError(
            f"k={k} neighbors requested, but only {count} images available; at least k + 1 required"
        )
    neighbors_NK = np.empty((count, k), dtype=np.int64)
    silent = not get_console().is_terminal
    for start in track(range(0, count, QUERIES), "neighbors", transient=True, disable=silent):
        rows = slice(start, min(start + QUERIES, count))
        neighbors_NK[rows] = _nearest(z_ND, rows, k).cpu().numpy()
    return neighbors_NK


def _nearest(z_ND: Tensor, rows: slice, k: int) -> Tensor:
    """Return indices (Q, k) of the images nearest to those of ``rows``."""
    query_QD = z_ND[rows]
    own_Q = torch.arange(rows.start, rows.stop, device=z_ND.device)
    best_QK = query_QD.new_empty(len(own_Q), 0)
    index_QK = own_Q.new_empty(len(own_Q), 0)
    for first in range(0, len(z_ND), BANK):
        bank_MD = z_ND[first : first + BANK]
        similarity_QM = query_QD @ bank_MD.T
        here_Q = ((own_Q >= first) & (own_Q < first + len(bank_MD))).nonzero()[:, 0]
        similarity_QM[here_Q, own_Q[here_Q] - first] = -torch.inf
        value_QK, column_QK = _largest(similarity_QM, min(k, len(bank_MD)))
        # Blocks come by rising number: a stable choice prefers the lower one of equals.
        best_QK = torch.cat([best_QK, value_QK], dim=1)
        index_QK = torch.cat([index_QK, column_QK + first], dim=1)
        best_QK, order_QK = best_QK.sort(dim=1, descending=True, stable=True)
        best_QK, index_QK = best_QK[:, :k], index_QK.gather(1, order_QK)[:, :k]
    return index_QK


def _largest(x_QM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``topk`` that breaks ties by the lower column, which torch's does not promise."""
    more = min(k + 1, x_QM.shape[1])
    value_QK, column_QK = x_QM.topk(more, dim=1)
    equal_Q = (value_QK[:, 1:] == value_QK[:, :-1]).any(dim=1).nonzero()[:, 0]
    if len(equal_Q):
        value_QM, column_QM = x_QM[equal_Q].sort(dim=1, descending=True, stable=True)
        value_QK[equal_Q], column_QK[equal_Q] = value_QM[:, :more], column_QM[:, :more]
    return value_QK[:, :k], column_QK[:, :k]
