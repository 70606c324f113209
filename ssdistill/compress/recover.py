"""Fine-tune after compression with the distillation losses, without labels."""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ssdistill.compress import Context, Step, StepSettings
from ssdistill.compress.preconditions import refuse_file
from ssdistill.compress.zeros import zero_masks
from ssdistill.errors import UserError
from ssdistill.models.model import Model
from ssdistill.settings import Positive, PositiveInt
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import TrainSettings


class Recover(Step):
    """Train the compressed model with the chain's distillation losses.

    Weights that a ``zeros`` step has set to zero stay zero. Palettes and low bits do not survive
    a training: recover before ``share`` and ``lowbit``.

    Args:
        steps: optimizer steps; give this or ``epochs``.
        epochs: passes over the images.
        batch_size: images a step.
        optim: the optimizer.
        target: what it learns from: the ``teacher``, or ``original``, the model as it was before
            the first compression step; ``auto`` is the teacher where there is one.
        rewind: ``weights`` sets every weight that is left back to what it was in ``original``
            before it trains: lottery-ticket rewinding (arXiv:1903.01611), for models that have
            lost weights and no channels. To rewind the learning rate instead (Renda et al.,
            ICLR 2020, arXiv:2003.02389), give ``steps`` and ``optim`` of the distillation.
    """

    kind = "recover"
    paper = "Han et al., NeurIPS 2015, arXiv:1506.02626"
    makes = "recovered"

    def __init__(
        self,
        *,
        steps: PositiveInt | None = None,
        epochs: Positive | None = None,
        batch_size: PositiveInt = 256,
        optim: OptimSettings = OptimSettings(),  # noqa: B008  (frozen)
        target: Literal["auto", "teacher", "original"] = "auto",
        rewind: Literal["none", "weights"] = "none",
    ):
        if steps is None and epochs is None:
            steps = 200
        self.training = TrainSettings(
            steps=steps, epochs=epochs, batch_size=batch_size, optim=optim
        )
        self.target, self.rewind = target, rewind

    @classmethod
    def learns(cls, settings: StepSettings) -> bool:
        return True

    def apply(self, model: Model, context: Context) -> Model:
        """A trained copy of ``model``.

        Raises:
            UserError: nothing to learn from, or weights that cannot be rewound.
        """
        refuse_file(self.kind, model)
        targets = self._targets(context)
        if context.train is None or not targets:
            raise UserError("recover requires a distill section or context.train")
        masks = zero_masks(model)
        model = copy.deepcopy(model)
        if self.rewind == "weights":
            _rewind(model, context.original)
        hooks = _keep_zeros(model, masks)
        try:
            model = context.train(model, targets, self.training)
        finally:
            for hook in hooks:
                hook.remove()
        context.record.update(target=" and ".join(targets), masked=len(masks))
        return model

    def _targets(self, context: Context) -> Mapping[str, Model]:
        original = {"original": context.original} if context.original else {}
        if self.target == "auto":
            return context.teachers or original
        return context.teachers if self.target == "teacher" else original


@torch.no_grad()
def _rewind(model: Model, original: Model | None) -> None:
    if original is None:
        raise UserError("recover.rewind=weights requires context.original")
    state, original_state = model.net.state_dict(), original.net.state_dict()
    for name, tensor in state.items():
        if name not in original_state or original_state[name].shape != tensor.shape:
            raise UserError(
                f"recover.rewind=weights: '{name}' of '{model.name}' no longer has the shape it "
                "had in the original; only models without removed channels can be rewound"
            )
        tensor.copy_(original_state[name])


@torch.no_grad()
def _keep_zeros(model: Model, masks: Mapping[str, Tensor]) -> list:
    """Zero the masked weights and, from now on, their gradients.

    An optimizer that begins with no momentum then never moves them: decay of zero is zero.
    """
    parameters, hooks = dict(model.net.named_parameters()), []
    for name, mask in masks.items():
        parameter = parameters[name]
        keep = mask.to(parameter)
        parameter.mul_(keep)
        hooks.append(parameter.register_hook(lambda gradient, keep=keep: gradient * keep))
    return hooks
