"""What the loader hands on: pixels and where they come from, never a label."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """One step's worth of unlabeled images.

    Attributes:
        images_BHWC: uint8 pixels on the training device.
        index_B: int64 position of each image in its store (stable over epochs and runs).
        epoch: how often the data set has been walked through before this batch.
        step: optimizer step the batch belongs to, from 0.
        num_steps: optimizer steps the whole training takes.
    """

    images_BHWC: Tensor
    index_B: Tensor
    epoch: int
    step: int
    num_steps: int
