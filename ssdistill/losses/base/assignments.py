"""A teacher's assignments to classes: sharpened logits, balanced or centered."""

from typing import Literal

import torch
from torch import Tensor, nn

from ssdistill.distributed import mean_over_processes, world_size
from ssdistill.losses.base.prototypes import sinkhorn

Targets = Literal["sinkhorn", "centering"]


class Assigning(nn.Module):
    """What losses over assignments share, beside :class:`ssdistill.losses.Loss`.

    Attributes:
        center_K: moving average of the logits, a buffer with ``centering`` alone.
    """

    center_K: Tensor

    def set_assignments(
        self,
        targets: Targets,
        temperatures: tuple[float, float],
        temperature_warmup: float,
        center_momentum: float,
        count: int,
    ) -> None:
        """Choose how logits become assignments.

        Args:
            temperatures: T_t at the first step, and once the warm-up is over.
            temperature_warmup: fraction of the training over which T_t rises linearly.
            center_momentum: of the moving average.
            count: classes, K.
        """
        self.targets, self.temperatures = targets, temperatures
        self.temperature_warmup, self.center_momentum = temperature_warmup, center_momentum
        if targets == "centering":
            self.register_buffer("center_K", torch.zeros(count))

    def temperature_at(self, step: int, num_steps: int) -> float:
        """Return T_t at step ``step`` (from 0) of ``num_steps``."""
        first, last = self.temperatures
        warmup_steps = self.temperature_warmup * num_steps
        return last if step >= warmup_steps else first + (last - first) * step / warmup_steps

    @torch.no_grad()
    def assign(self, logits_VK: Tensor, temperature: float) -> Tensor:
        """The teacher's assignments (V, K) of all its rows of a batch; moves the center."""
        if self.targets == "sinkhorn":
            return sinkhorn(logits_VK, temperature)
        target_VK = ((logits_VK - self.center_K) / temperature).softmax(1)
        mean_K = mean_of_all_rows(logits_VK) if self.training else None
        if mean_K is not None:
            self.center_K.lerp_(mean_K, 1 - self.center_momentum)
        return target_VK


def mean_of_all_rows(x_NK: Tensor) -> Tensor | None:
    """Mean (K,) of the rows of all processes, which may differ in number; None without rows.

    Every row counts the same, so that several processes have the mean of one; in DINOv2's code
    (arXiv:2304.07193) it is the mean of the processes' means.
    """
    if world_size() == 1:
        return x_NK.mean(0) if len(x_NK) else None
    # A process without rows takes part, too: the others wait for it.
    count = x_NK.new_full((1,), len(x_NK))
    sums_K, rows = mean_over_processes(torch.cat([x_NK.sum(0), count])).split([x_NK.shape[1], 1])
    return sums_K / rows if rows > 0 else None
