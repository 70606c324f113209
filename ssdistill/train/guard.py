"""Stop training when a loss diverges or the embedding collapses."""

from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.label_free.collapse import is_collapsed

COLLAPSE_PATIENCE = 20
"""Consecutive collapsed measurements before training stops."""


class Guard:
    """Check the logged metrics."""

    def __init__(self) -> None:
        self.collapsed_in_a_row = 0

    def check(self, metrics: dict[str, float], embedding_BD: Tensor | None, step: int) -> None:
        """Raise UserError if training has failed; without an embedding, check the losses only.

        Raises:
            UserError: a loss is not finite, or the embedding has been collapsed for
                :data:`COLLAPSE_PATIENCE` calls.
        """
        # The total comes last: a single loss is more informative.
        for name, value in sorted(metrics.items(), key=lambda item: item[0] == "loss/total"):
            if name.startswith("loss/") and not abs(value) < float("inf"):
                raise UserError(
                    f"{name} is {value} at step {step}: lower optim.lr, set optim.clip_grad_norm, "
                    "or train with device.precision=fp32"
                )
        collapsed = embedding_BD is not None and is_collapsed(embedding_BD.float())
        self.collapsed_in_a_row = self.collapsed_in_a_row + 1 if collapsed else 0
        if self.collapsed_in_a_row >= COLLAPSE_PATIENCE:
            raise UserError(
                f"the embedding has collapsed at step {step} (collapse/std "
                f"{metrics['collapse/std']:.3f}): every image is mapped to nearly the same vector; "
                "lower optim.lr, or use a larger batch_size"
            )
