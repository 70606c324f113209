"""Feature vectors for comparison: checked, normalized for cosines, read in blocks."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError
from ssdistill.label_free.features import as_features
from ssdistill.label_free.rows import piece_rows

Distance = Literal["cosine", "euclidean"]
BLOCK = 16384
"""Vectors in a block."""
KEPT = 2**27
"""Numbers up to which prepared vectors are kept (512 MiB); larger banks are prepared again."""
SAMPLE = 4096
"""Vectors whose mean approximates that of all; any vector would give the same results."""


class Vectors:
    """N float32 vectors of width D, in the form in which they are compared.

    Args:
        rows_ND: from :func:`as_rows`.
        distance: ``cosine`` normalizes them, a zero vector stays one.
        device: where to compare; default: where the rows are.
        keep: prepare them once, where they are few.
    """

    def __init__(
        self, rows_ND: Any, distance: Distance = "cosine", device: Any = None, keep: bool = True
    ):
        home = rows_ND.device if isinstance(rows_ND, Tensor) else "cpu"
        self.rows_ND = rows_ND
        self.distance: Distance = distance
        self.device = torch.device(home if device is None else device)
        self._kept_ND: Tensor | None = None
        self._low: dict[int, tuple[Tensor, float, float]] = {}
        if keep and len(self) * self.width <= KEPT:
            kept_ND = torch.empty(len(self), self.width, device=self.device)
            for start, block_nD in self.blocks():
                kept_ND[start : start + len(block_nD)] = block_nD
            self._kept_ND = kept_ND

    def __len__(self) -> int:
        return len(self.rows_ND)

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self.rows_ND.shape[1]

    def take(self, rows: slice | Tensor) -> Tensor:
        """Return some of the vectors."""
        indexed = isinstance(rows, Tensor)
        if self._kept_ND is not None:
            return self._kept_ND.index_select(0, rows) if indexed else self._kept_ND[rows]
        part = self.rows_ND
        if isinstance(part, Tensor):
            part = part[rows.to(part.device) if indexed else rows]
        else:
            # A copy: what a read-only map lends must not become a writable tensor.
            part = torch.from_numpy(np.array(part[rows.cpu().numpy() if indexed else rows]))
        part = part.detach().to(self.device, torch.float32)
        return functional.normalize(part, dim=1) if self.distance == "cosine" else part

    def blocks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield the start index and the vectors of every block."""
        size = size or BLOCK
        for start in range(0, len(self), size):
            yield start, self.take(slice(start, min(start + size, len(self))))

    @cached_property
    def center_D(self) -> Tensor:
        """Approximate mean of the vectors."""
        spread_S = torch.linspace(0, len(self) - 1, min(SAMPLE, len(self)), dtype=torch.float64)
        return self.take(spread_S.long().to(self.device)).mean(0)

    def low_blocks(self) -> Iterator[tuple[int, Tensor, float, float]]:
        """Yield blocks as ``blocks`` does, in bfloat16 and without their mean.

        Beside them, length of the longest, and of the most that one lost by rounding.

        What is common to all vectors moves all products with a query alike. Without it, rounding
        is relative to how the vectors differ.
        """
        for start in range(0, len(self), BLOCK):
            block: tuple[Tensor, float, float] | None = self._low.get(start)
            if block is None:
                away_nD = self.take(slice(start, min(start + BLOCK, len(self)))) - self.center_D
                low_nD = away_nD.bfloat16()
                length_n = torch.linalg.vector_norm(away_nD, dim=1)
                lost_n = torch.linalg.vector_norm(away_nD - low_nD, dim=1)
                block = low_nD, length_n.max().item(), lost_n.max().item()
                if self._kept_ND is not None:
                    self._low[start] = block
            low_nD, longest, lost = block
            yield start, low_nD, longest, lost


def as_rows(features: Any, name: str) -> Any:
    """Check features chunk by chunk without a copy; float16 may stay as it is.

    Returns:
        A tensor, or where the features are a numpy array or map, that array.

    Raises:
        UserError: what :func:`ssdistill.label_free.features.as_features` refuses.
    """
    halves = (torch.float16, torch.bfloat16, torch.float32)
    if isinstance(features, Tensor) and features.dtype in halves:
        rows_ND = features.detach()
    elif isinstance(features, np.ndarray) and features.dtype in (np.float16, np.float32):
        rows_ND = features
    else:
        rows_ND = as_features(features, name)
    if rows_ND.ndim != 2 or 0 in rows_ND.shape:
        raise UserError(f"{name} must be a non-empty (N, D) array, got {tuple(rows_ND.shape)}")
    step, broken = piece_rows(rows_ND.shape[1]), 0
    for start in range(0, len(rows_ND), step):
        part = rows_ND[start : start + step]
        finite = torch.isfinite(part) if isinstance(part, Tensor) else np.isfinite(part)
        broken += int((~finite.all(1)).sum())
    if broken:
        raise UserError(
            f"{name} have NaN or infinite values in {broken} of {len(rows_ND)} rows: "
            "the encoder diverged or was run outside its precision"
        )
    return rows_ND
