"""The batch that the loader yields: pixels and their origin, never a label."""

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
        neighbors_BHWC: uint8 pixels of an image like each of them, where a loss reads it.
        cutmix_fraction: of the image itself in its ``cutmix`` view; set when views are made.
    """

    images_BHWC: Tensor
    index_B: Tensor
    epoch: int
    step: int
    num_steps: int
    neighbors_BHWC: Tensor | None = None
    cutmix_fraction: float | None = None
