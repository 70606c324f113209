"""Choose the parts of an image that a network does not see."""

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform

_MASK = 0x6D61736B
"""View number of the draws of patch orders."""


def shuffled(batch: Batch, count: int) -> Tensor:
    """Return 0 to ``count`` - 1 in a random order for each image, (B, count) int64.

    A function of the step and the image, so a resumed training draws the same.
    """
    number_BN = uniform(batch.step, batch.epoch, batch.index_B, _MASK, count)
    return number_BN.argsort(dim=1, stable=True)
