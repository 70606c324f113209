"""The batch that the loader yields: pixels and their origin, never a label."""

from dataclasses import dataclass, field

from torch import Tensor

from ssdistill.data.view_parameters import ViewParameters
from ssdistill.distributed import rank, world_size


@dataclass
class Crops:
    """Crops of original images, for one view.

    Attributes:
        pixels_BCHW: uint8, or float32 in [0, 1], cropped and resized, on the training device.
        params: random parameters of the view.
        finished: whether the pixels are also flipped and colored.
    """

    pixels_BCHW: Tensor
    params: ViewParameters
    finished: bool = False


@dataclass
class Batch:
    """The unlabeled images of one step.

    Attributes:
        images_BHWC: uint8 pixels, or float32 in [0, 1], on the training device; None for originals.
        index_B: int64 position of each image in its store (stable over epochs and runs).
        draw_B: int64 numbers that views are drawn by, if not ``index_B``: positions in the epoch of
            images that are drawn by weight, since an epoch may contain an image several times.
        epoch: number of complete passes over the data set before this batch.
        step: optimizer step the batch belongs to, from 0.
        num_steps: optimizer steps of the whole training.
        neighbors_BHWC: pixels of one neighbor of each image; None unless a loss uses it.
        cutmix_fraction: fraction of an image in its ``cutmix`` view; set when views are made.
        crops: crops of originals by view number; empty for stored images.
        first: position of the first image in this process's batch, where this is a part of it.
        whole: images of that batch; None where this is all of it.
        outputs: (B, W) int16 rows of recorded outputs by teacher; empty unless recorded. They are
            the bits of float16, which no change of precision touches.
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
    first: int = 0
    whole: int | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def number_B(self) -> Tensor:
        """The numbers by which the views of each image are drawn."""
        return self.index_B if self.draw_B is None else self.draw_B

    @property
    def place(self) -> tuple[int, slice]:
        """How many images the step has in all processes, and which of them these are.

        For random numbers that are drawn for all at once, so that one process, several, and parts
        of a batch draw the same.
        """
        whole = len(self.index_B) if self.whole is None else self.whole
        first = rank() * whole + self.first
        return world_size() * whole, slice(first, first + len(self.index_B))
