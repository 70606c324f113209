"""How the images of a source are read, where that is not as usual."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Color = Literal["ignore", "srgb"]
FrameChoice = Literal["first", "all"]


@dataclass(frozen=True)
class Reading:
    """What the data settings say of how each image is read.

    Args:
        color: ``srgb`` converts images with another color profile; ``ignore`` reads their pixels
            as they are.
        frames: ``all`` makes each frame of an animation, and each page of a TIFF, an image.
        folder: where the numbers of frames are kept; None keeps none.
        keeps: whether they are written there, rather than only read.
    """

    color: Color = "ignore"
    frames: FrameChoice = "first"
    folder: Path | None = None
    keeps: bool = False

    @property
    def key(self) -> list[Any]:
        """What of it changes pixels, as it enters the names of stores; nothing at the defaults.

        Frames change the rows, and so the identity of a split.
        """
        return [["color", self.color]] if self.color != "ignore" else []


AS_USUAL = Reading()
