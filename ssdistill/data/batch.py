"""The batch that the loader yields: pixels and their origin, never a label."""

from dataclasses import dataclass, field

from torch import Tensor

from ssdistill.data.view_parameters import ViewParameters


@dataclass
class Crops:
    """What a view of originals is made of.

    Attributes:
        pixels_BCHW: uint8, or float32 in [0, 1], cut and resized, on the training device.
        params: all that was drawn for the view.
    """

    pixels_BCHW: Tensor
    params: ViewParameters


@dataclass
class Batch:
    """One step's worth of unlabeled images.

    Attributes:
        images_BHWC: uint8 pixels, or float32 in [0, 1], on the training device; None of originals.
        index_B: int64 position of each image in its store (stable over epochs and runs).
        draw_B: int64 numbers by which views are drawn, where they are not ``index_B``: of images
            drawn by weight, which an epoch may have several times, their positions in it.
        epoch: how often the data set has been walked through before this batch.
        step: optimizer step the batch belongs to, from 0.
        num_steps: optimizer steps the whole training takes.
        neighbors_BHWC: pixels of an image like each of them, where a loss reads it.
        cutmix_fraction: of the image itself in its ``cutmix`` view; set when views are made.
        crops: of originals, one entry for each view, by its number.
    """

    images_BHWC: Tensor | None
    index_B: Tensor
    epoch: int
    step: int
    num_steps: int
    neighbors_BHWC: Tensor | None = None
    cutmix_fraction: float | None = None
    crops: dict[int, Crops] = field(default_factory=dict)
    draw_B: Tensor | None = None

    @property
    def number_B(self) -> Tensor:
        """The numbers by which the views of each image are drawn."""
        return self.index_B if self.draw_B is None else self.draw_B
