"""Settings for reading the images of a source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Color = Literal["ignore", "srgb"]
FrameChoice = Literal["first", "all"]


@dataclass(frozen=True)
class Reading:
    """How each image is read, according to the data settings.

    Args:
        color: ``srgb`` converts images with another color profile; ``ignore`` reads their pixels
            as they are.
        frames: ``all`` reads each frame of an animation, and each page of a TIFF, as an image.
        folder: where numbers of frames are cached; None disables caching.
        keeps: whether to write the cache, rather than only read it.
        seconds: time after which a read that has not returned is given up.
    """

    color: Color = "ignore"
    frames: FrameChoice = "first"
    folder: Path | None = None
    keeps: bool = False
    seconds: float = 120.0

    @property
    def key(self) -> list[Any]:
        """Settings that change pixels, as part of the keys of stores; empty by default.

        Frames change the number of images instead, and so the identity of a split.
        """
        return [["color", self.color]] if self.color != "ignore" else []


AS_USUAL = Reading()
