"""The batch that the loader yields: pixels and their origin, never a label."""

from dataclasses import dataclass, field

from torch import Tensor

from ssdistill.data.views import ViewParameters


@dataclass
class Crops:
    """Crops of original images, for one view.

    Attributes:
        pixels_BCHW: uint8, cropped and resized, on the training device.
        params: random parameters of the view.
    """

    pixels_BCHW: Tensor
    params: ViewParameters


@dataclass
class Batch:
    """The unlabeled images of one step.

    Attributes:
        images_BHWC: uint8 pixels on the training device; None for originals.
        index_B: int64 position of each image in its store (stable over epochs and runs).
        epoch: number of complete passes over the data set before this batch.
        step: optimizer step the batch belongs to, from 0.
        num_steps: optimizer steps of the whole training.
        neighbors_BHWC: uint8 pixels of one neighbor of each image; None unless a loss uses it.
        cutmix_fraction: fraction of an image in its ``cutmix`` view; set when views are made.
        crops: crops of originals by view number; empty for stored images.
    """

    images_BHWC: Tensor | None
    index_B: Tensor
    epoch: int
    step: int
    num_steps: int
    neighbors_BHWC: Tensor | None = None
    cutmix_fraction: float | None = None
    crops: dict[int, Crops] = field(default_factory=dict)
