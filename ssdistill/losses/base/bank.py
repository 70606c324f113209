"""Vectors that a loss stores: queues, per-image memories and the teacher's mean.

All of it lives in persistent buffers, so a checkpoint resumes exactly, and every write is
gathered first, so that all processes hold the same rows.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.distributed import all_gather_rows, mean_over_processes

Init = Literal["unit_normal", "uniform", "zeros"]


def initial_rows(size: int, width: int, init: Init) -> Tensor:
    """Draw (size, width) initial rows.

    ``unit_normal`` is a random direction of length 1, ``uniform`` draws from
    U(-1/sqrt(width/3), 1/sqrt(width/3)), which has length 1 on average.
    """
    if init == "zeros":
        return torch.zeros(size, width)
    if init == "unit_normal":
        return F.normalize(torch.randn(size, width), dim=1)
    bound = (width / 3) ** -0.5
    return torch.empty(size, width).uniform_(-bound, bound)


class Bank(nn.Module):
    """A ring buffer of named, aligned rows: row k of every name was pushed together.

    Args:
        size: rows kept, K; the oldest are overwritten.
        init: what the rows hold before the first push, see :func:`initial_rows`.
        widths: name and width of each tensor, e.g. ``Bank(4096, teacher=512, student=128)``.

    Attributes:
        pushed: rows ever pushed, a buffer; the next one goes to ``pushed % size``.
    """

    pushed: Tensor
    # Rows, of those names that the owner gives.
    teacher: Tensor
    student: Tensor
    key: Tensor
    embedding: Tensor

    def __init__(self, size: int, init: Init = "unit_normal", **widths: int):
        super().__init__()
        self.size, self.names = size, tuple(widths)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        for name, width in widths.items():
            self.register_buffer(name, initial_rows(size, width, init))

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy (K, width) of one tensor.

        ``push`` writes in place, while the backward pass of a loss still needs the rows it was
        scored against.
        """
        if name not in self.names:
            raise KeyError(name)
        return getattr(self, name).clone()

    @torch.no_grad()
    def push(self, **rows_BD: Tensor) -> None:
        """Append the rows of all processes, in rank order, replacing the oldest ones.

        Any number of rows will do; of more than ``size`` the last ``size`` are kept.

        Raises:
            ValueError: unless exactly the bank's names are given, with equally many rows.
        """
        if rows_BD.keys() != set(self.names):
            raise ValueError(
                f"push requires rows for {', '.join(self.names)}; got {', '.join(rows_BD)}"
            )
        rows_BD = {name: all_gather_rows(rows) for name, rows in rows_BD.items()}
        counts = {len(rows) for rows in rows_BD.values()}
        if len(counts) > 1:
            raise ValueError(
                f"push requires the same number of rows for each name; got {sorted(counts)}"
            )
        count = counts.pop()
        num_kept = min(count, self.size)
        order_B = torch.arange(count - num_kept, count, device=self.pushed.device)
        slot_B = (self.pushed + order_B) % self.size
        for name, rows in rows_BD.items():
            buffer_KD = getattr(self, name)
            buffer_KD.index_copy_(0, slot_B, rows[count - num_kept :].to(buffer_KD.dtype))
        self.pushed += count


def default_queue_size(num_samples: int, at_most: int = 4096) -> int:
    """Return the default size of a queue: at most half the images.

    An image then seldom meets its own key of the previous epoch.
    """
    return max(1, min(at_most, num_samples // 2))


class IndexMemory(nn.Module):
    """Moving average of the vectors of each training image, one row per image and name.

    Args:
        num_samples: images in the training store.
        momentum: weight of the old row.
        init: as for :class:`Bank`.
        widths: name and width of each tensor.
    """

    def __init__(self, num_samples: int, momentum: float, init: Init = "uniform", **widths: int):
        super().__init__()
        self.momentum, self.names = momentum, tuple(widths)
        for name, width in widths.items():
            self.register_buffer(name, initial_rows(num_samples, width, init))

    def __getitem__(self, name: str) -> Tensor:
        """A copy (num_samples, width) of one tensor, for the same reason as in :class:`Bank`."""
        if name not in self.names:
            raise KeyError(name)
        return getattr(self, name).clone()

    @torch.no_grad()
    def write(self, index_B: Tensor, **rows_BD: Tensor) -> None:
        """M[i] <- n(momentum M[i] + (1 - momentum) v), n(x) = x / |x|, with rows of all processes.

        An index may occur once; of repeated ones an unspecified row wins.
        """
        index_B = all_gather_rows(index_B)
        for name, rows in rows_BD.items():
            buffer_ND = getattr(self, name)
            rows = all_gather_rows(rows).to(buffer_ND.dtype)
            moved_BD = self.momentum * buffer_ND[index_B] + (1 - self.momentum) * rows
            buffer_ND.index_copy_(0, index_B, F.normalize(moved_BD, dim=1))


class TeacherMean(nn.Module):
    """Subtract the running mean of the teacher's embeddings over all training batches.

    Embeddings after a ReLU share a large mean and hence cosines near 1 with one another;
    without it, cosines tell images apart. The teacher is frozen, so the plain average over
    batches converges, and the batch at hand counts from the first step on.
    """

    mean_D: Tensor
    batches: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Centered float32 copies of the views' embeddings, each (B, width)."""
        views = [t_BD.float() for t_BD in views]
        if self.training:
            batch_mean_D = mean_over_processes(torch.cat(views).mean(0))
            self.batches += 1
            self.mean_D += (batch_mean_D - self.mean_D) / self.batches
        return [t_BD - self.mean_D for t_BD in views]


def centering(center_teacher: bool, width: int) -> nn.Module:
    """Return :class:`TeacherMean`, or an identity module if centering is off."""
    return TeacherMean(width) if center_teacher else nn.Identity()
