"""Standardized rows of a feature matrix, chunk by chunk, without a copy of all of them."""

from copy import copy

import torch
from torch import Tensor

KEEP = 2**28
"""Bytes up to which standardized rows are kept in memory; larger sets are recomputed every pass."""
PIECE = 2**22
"""Numbers in a chunk (16 MiB): close to the cache size, and enough for all threads."""


def standardization(z_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every feature; 1 where it does not vary.

    Pieces of the rows are merged as in Chan, Golub and LeVeque 1983 (doi:10.2307/2683386): one
    pass, and no copy.
    """
    pieces = z_ND.split(piece_rows(z_ND.shape[1]))
    if len(pieces) == 1:
        std_D, mean_D = torch.std_mean(z_ND, dim=0, correction=0)
    else:
        count = 0
        mean_D = square_D = z_ND.new_zeros(z_ND.shape[1], dtype=torch.float64)
        for piece_nD in pieces:
            rows = len(piece_nD)
            rough_D = piece_nD.mean(0)
            away_nD = piece_nD - rough_D
            # The mean of a piece is rounded; its error is subtracted from both.
            off_D = away_nD.mean(0).double()
            own_D = away_nD.square_().sum(0).double() - rows * off_D.square()
            apart_D = rough_D.double() + off_D - mean_D
            count += rows
            mean_D = mean_D + apart_D * (rows / count)
            square_D = square_D + own_D + apart_D.square() * (rows * (count - rows) / count)
        std_D = (square_D / count).clamp(min=0).sqrt().to(z_ND.dtype)
        mean_D = mean_D.to(z_ND.dtype)
    rounding_D = 1e-6 * mean_D.abs()
    return mean_D, torch.where(std_D > rounding_D, std_D, torch.ones_like(std_D))


def piece_rows(width: int) -> int:
    """Return the number of rows of ``width`` numbers per chunk."""
    return max(1, PIECE // width)


class Rows:
    """Standardized rows of G data sets drawn from one matrix, each of N rows.

    Small sets are computed once and kept; large ones are recomputed on every request, which
    costs a pass over them in the cache. The numbers are the same either way.

    Args:
        z_ND: features; a memory map is read piece by piece.
        mean_D, scale_D: from :func:`standardization`.
        index_GN: rows of ``z_ND`` by data set; default: one data set of all, in order.
        keep: bytes up to which the rows are kept.
    """

    def __init__(
        self,
        z_ND: Tensor,
        mean_D: Tensor,
        scale_D: Tensor,
        index_GN: Tensor | None = None,
        keep: int = KEEP,
    ):
        self.z_ND, self.index_GN = z_ND, index_GN
        # Multiplying and adding is one step, and loses no more than z itself was rounded by.
        self.gain_D, self.shift_D = 1 / scale_D, -mean_D / scale_D
        self.groups, self.count = (1, len(z_ND)) if index_GN is None else index_GN.shape
        self.width, self.dtype = z_ND.shape[1], z_ND.dtype
        self.kept_GND: Tensor | None = None
        shape = self.groups, self.count, self.width
        if torch.Size(shape).numel() * z_ND.element_size() <= keep:
            kept_GND = z_ND.new_empty(shape)
            for start in range(0, self.count, self.most):
                part_GnD = self(start, start + self.most)
                kept_GND[:, start : start + self.most] = part_GnD
            self.kept_GND = kept_GND

    def __len__(self) -> int:
        return self.count

    @property
    def most(self) -> int:
        """Most rows to request at a time: all if they are kept, else one chunk."""
        return self.count if self.kept_GND is not None else piece_rows(self.groups * self.width)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` of every data set, (G, n, D); read-only."""
        if self.kept_GND is not None:
            return self.kept_GND[:, start:stop]
        if self.index_GN is None:
            return torch.addcmul(self.shift_D, self.z_ND[start:stop], self.gain_D)[None]
        index_GN = self.index_GN[:, start:stop]
        x_MD = self.z_ND.index_select(0, index_GN.reshape(-1))
        return torch.addcmul(self.shift_D, x_MD, self.gain_D, out=x_MD).view(*index_GN.shape, -1)

    def part(self, start: int, stop: int) -> "Rows":
        """Return a view of rows ``start`` to ``stop`` only; nothing is copied."""
        subset = copy(self)
        subset.count = stop - start
        if self.kept_GND is not None:
            subset.kept_GND = self.kept_GND[:, start:stop]
        elif self.index_GN is not None:
            subset.index_GN = self.index_GN[:, start:stop]
        else:
            subset.z_ND = self.z_ND[start:stop]
        return subset
