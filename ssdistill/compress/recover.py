"""Training after pruning: the distillation losses again, still without labels."""

from typing import Literal

from ssdistill.compress import Context, Step
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.settings import Positive, PositiveInt
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import TrainSettings


class Recover(Step):
    """Train the encoder with the chain's distillation losses.

    Args:
        steps: optimizer steps; give this or ``epochs``.
        epochs: passes over the images.
        batch_size: images a step.
        optim: the optimizer.
        target: what it learns from: ``teacher``, or ``original``, the student as it was before
            the first compression step.
    """

    kind = "recover"
    paper = "fine-tuning after pruning: Han et al., NeurIPS 2015, arXiv:1506.02626"
    makes = "recovered"
    trains = True

    def __init__(
        self,
        *,
        steps: PositiveInt | None = None,
        epochs: Positive | None = None,
        batch_size: PositiveInt = 256,
        optim: OptimSettings = OptimSettings(),  # noqa: B008  (frozen)
        target: Literal["teacher", "original"] = "teacher",
    ):
        if steps is None and epochs is None:
            steps = 200
        self.training = TrainSettings(
            steps=steps, epochs=epochs, batch_size=batch_size, optim=optim
        )
        self.target = target

    def apply(self, encoder: Encoder, context: Context) -> Encoder:
        original = {"original": context.original} if context.original else {}
        targets = context.teachers if self.target == "teacher" else original
        if context.train is None or not targets:
            raise UserError("compress: recover needs a distill section to train with")
        return context.train(encoder, targets, self.training)
