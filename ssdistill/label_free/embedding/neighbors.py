"""Nearest neighbors of every row by cosine similarity, block by block."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.label_free.embedding.partial import INDICES, SIMILARITIES
from ssdistill.label_free.nearest import neighbors
from ssdistill.label_free.vectors import as_rows


def check_topk(topk: int | None, layer: str, images: int | None = None) -> None:
    """Raise UserError unless every image can have ``topk`` neighbors.

    Args:
        images: how many there are; None where that is not known yet.
    """
    if topk is None:
        return
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
        raise UserError(f"topk={topk}: write a whole number from 1, or omit it")
    if layer == "patch":
        raise UserError(
            "topk compares one vector for each image, and layer=patch has several; omit topk"
        )
    if images is not None and images <= topk:
        raise UserError(
            f"topk={topk}: more than the {images - 1} other images; lower topk, or omit it"
        )


def nearest_rows(
    rows_ND: np.ndarray, k: int, start: int = 0, device: Any = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the k rows nearest to each row from ``start`` on, nearest first, without itself.

    Args:
        rows_ND: float32 or float16; a map is read block by block.
        device: where to compare; default: the CPU.

    Yields:
        index_Bk, int64, and the cosine similarities, (B, k) float32, falling.

    Raises:
        UserError: rows that are not finite, or no more than ``k``.
    """
    check_topk(k, "embedding", len(rows_ND))
    rows_ND = as_rows(rows_ND, "embeddings")
    for closeness_Bm, index_Bm in neighbors(rows_ND[start:], rows_ND, k + 1, device=device):
        own_B = torch.arange(start, start + len(index_Bm), device=index_Bm.device)
        index_Bk, closeness_Bk = without_itself(index_Bm, closeness_Bm, own_B)
        start += len(index_Bm)
        yield index_Bk.cpu().numpy(), closeness_Bk.cpu().numpy()


def without_itself(index_Bm: Tensor, closeness_Bm: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
    """Drop each query from its own neighbors, or the last one where duplicates left it out."""
    itself_last_Bm = (index_Bm == own_B[:, None]).int().argsort(dim=1, stable=True)
    index_Bm, closeness_Bm = (x.gather(1, itself_last_Bm) for x in (index_Bm, closeness_Bm))
    return index_Bm[:, :-1], closeness_Bm[:, :-1]


def neighbor_files(folder: Path) -> dict[str, Path]:
    """Return the files of indices and similarities while they are being found."""
    return {"indices": folder / INDICES, "similarities": folder / SIMILARITIES}
