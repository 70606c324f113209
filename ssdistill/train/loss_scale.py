"""Loss scaling: losses are multiplied so that small gradients do not vanish in float16."""

from typing import TYPE_CHECKING, Any

import torch

from ssdistill.errors import UserError
from ssdistill.train.progress import console

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricOptimizer

SMALLEST = 2.0**-14
"""The least loss scale, of 30 halvings in a row: float16's smallest normal number."""
HANDFUL = 8
"""Skipped steps that are no news: the first scale is far too large on purpose."""


def loss_scale_of(fabric: "Fabric") -> float:
    """Return what ``fabric`` multiplies losses by before their backward pass."""
    scaler = scaler_of(fabric)
    return 1.0 if scaler is None else scaler.get_scale()


def scaler_of(fabric: "Fabric") -> torch.amp.GradScaler | None:
    """Return the gradient scaler of ``fabric``; None where gradients are not scaled."""
    return getattr(fabric.strategy.precision, "scaler", None)


class LossScale:
    """Takes optimizer steps of scaled gradients (Micikevicius et al., arXiv:1710.03740, sec. 3.2).

    The scale is halved, and the step skipped, where a gradient is infinite or NaN; it is doubled
    after 2000 steps in a row without one. All processes do the same: they decide by averaged
    gradients, in which what one of them cannot represent is not finite either. Where Fabric scales
    nothing, every step is taken as it is.

    Args:
        fabric: scales in its backward passes.
        title: what trains, for messages; empty to say nothing.

    Attributes:
        skipped: steps so far that were skipped.
    """

    def __init__(self, fabric: "Fabric", title: str = ""):
        self.scaler, self.title, self.skipped = scaler_of(fabric), title, 0

    def unscale(self, optimizer: "_FabricOptimizer") -> None:
        """Divide the gradients by the scale, so that they can be clipped and measured."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer.optimizer)

    def step(self, optimizer: "_FabricOptimizer", step: int) -> bool:
        """Take a step unless a gradient is not finite; return whether it was taken.

        Args:
            step: its number, from 0.

        Raises:
            UserError: gradients are not finite at any scale.
        """
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        optimizer.step()  # also updates the scale
        if self.scaler.get_scale() >= before:
            return True
        self.skipped += 1
        if self.scaler.get_scale() < SMALLEST:
            raise UserError(
                f"device.precision=fp16: gradients are infinite or NaN at step {step}, however "
                "small the loss scale; lower optim.lr, or set device.precision=bf16 or fp32"
            )
        if self.skipped == HANDFUL + 1 and self.title:
            console.print(
                f"  {self.title}: {self.skipped} of {step + 1} steps were skipped because "
                "gradients exceed float16 (optim/skipped_steps); if it goes on, lower optim.lr "
                "or set device.precision=bf16 or fp32",
                style="yellow",
            )
        return False

    def require_a_step(self, num_steps: int) -> None:
        """Refuse the result of a training that has taken no step.

        Raises:
            UserError: all steps were skipped.
        """
        if num_steps and self.skipped == num_steps:
            raise UserError(
                f"device.precision=fp16: all {num_steps} steps were skipped because gradients "
                "exceed float16; lower optim.lr or the weights of the losses, train for longer, "
                "or set device.precision=bf16 or fp32"
            )

    @property
    def metrics(self) -> dict[str, float]:
        """The scale and the number of skipped steps, for the log; empty where nothing is scaled."""
        if self.scaler is None:
            return {}
        scale = self.scaler.get_scale()
        return {"optim/loss_scale": scale, "optim/skipped_steps": float(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training continues with; empty where nothing is scaled."""
        if self.scaler is None:
            return {}
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as :meth:`state_dict` says; a checkpoint of another precision says nothing."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state["scaler"])
            self.skipped = state["skipped"]
