"""Choose the parts of an image to mask."""

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform

_MASK = 0x6D61736B
"""View number for random draws of patch orders."""


def shuffled(batch: Batch, count: int) -> Tensor:
    """Return a random permutation of 0 to ``count - 1`` for each image, (B, count) int64.

    It depends only on the step and the image, so a resumed run draws the same.
    """
    number_BN = uniform(batch.step, batch.epoch, batch.index_B, _MASK, count)
    return number_BN.argsort(dim=1, stable=True)
