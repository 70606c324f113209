"""Which parts of an image are hidden from a network."""

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform

_MASK = 0x6D61736B
"""Stands for a view where the order of patches is drawn."""


def shuffled(batch: Batch, count: int) -> Tensor:
    """The numbers 0 to ``count`` - 1 in a random order for each image, (B, count) int64.

    A function of the step and the image, so a resumed training draws the same.
    """
    number_BN = uniform(batch.step, batch.epoch, batch.index_B, _MASK, count)
    return number_BN.argsort(dim=1, stable=True)
