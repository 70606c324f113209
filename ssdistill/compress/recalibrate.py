"""Re-estimate batch-norm statistics from unlabeled inputs."""

import copy
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ssdistill.compress import Context, Step
from ssdistill.compress.fitting.consumers import dense_of, likeness
from ssdistill.compress.preconditions import refuse_non_finite
from ssdistill.errors import UserError
from ssdistill.models.model import Model
from ssdistill.settings import PositiveInt

SMALLEST = 8
"""Fewest inputs for estimation and for the held-out comparison."""


class Recalibrate(Step):
    """Re-estimate batch-norm statistics for the current weights.

    After pruning without a refit the old ones are far off; after a refit new ones may do harm.
    New ones are kept only if the embeddings then agree better with those of the uncompressed
    network, on inputs that the statistics were not estimated from.

    Args:
        images: unlabeled inputs; at least a quarter of what there is remains to evaluate the
            result.
        batch_size: inputs at a time; their statistics are averaged with equal weights.
        seed: of the choice of images.
    """

    kind = "recalibrate"
    paper = "EagleEye: Li et al., ECCV 2020, arXiv:2007.02491"
    makes = "recalibrated"

    def __init__(
        self,
        *,
        images: PositiveInt = 512,
        batch_size: Annotated[int, Field(ge=2)] = 64,
        seed: int = 0,
    ):
        self.images, self.batch_size, self.seed = images, batch_size, seed

    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``model`` with new statistics, or with its own where those were better.

        ``context.record`` receives ``norms``, ``cka_before``, ``cka_after`` and ``accepted``
        (0 or 1).

        Raises:
            UserError: no batch norm with statistics, nothing to compare with, fewer than eight
                inputs, or values that are not finite.
        """
        dense = dense_of(model, context, self.kind)
        refuse_non_finite(self.kind, model)
        if not (norms := norms_of(model)):
            raise UserError(f"recalibrate: '{model.name}' has no batch norm: remove this step")
        inputs = context.images(self.images * 3 // 2, self.seed)
        if len(inputs) < SMALLEST:
            raise UserError(f"recalibrate requires at least {SMALLEST} inputs, got {len(inputs)}")
        count = min(self.images, len(inputs) * 3 // 4)
        # Parts of almost equal size: a single input left over would have no variance.
        batches = inputs[:count].tensor_split(-(-count // self.batch_size))
        candidate = recalibrate(model, context.progress(batches, "recalibrate"))
        before, after = (likeness(m, dense, inputs[count:]) for m in (model, candidate))
        context.record.update(
            norms=len(norms), cka_before=before, cka_after=after, accepted=int(after > before)
        )
        return candidate if after > before else copy.deepcopy(model)


def norms_of(model: Model) -> list[nn.modules.batchnorm._BatchNorm]:
    """Batch-norm modules with running statistics."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    norms = [m for m in model.net.modules() if isinstance(m, kinds)]
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def recalibrate(model: Model, batches: Iterable[Tensor]) -> Model:
    """A copy of ``model`` with batch-norm statistics that are averages over ``batches``.

    Everything else runs as in eval mode: no dropout, no stochastic depth.
    """
    changed = copy.deepcopy(model).eval()
    norms = norms_of(changed)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None: every batch counts the same.
        norm.train().momentum = None
    for batch in batches:
        changed(batch.to(changed.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, original_module in zip(changed.modules(), model.modules(), strict=True):
        module.training = original_module.training
    return changed
