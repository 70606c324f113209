"""Settings shared by all data sources."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ssdistill.data.deep_pixels import has_usable_width
from ssdistill.data.reading import Color, FrameChoice, Reading
from ssdistill.settings import Fraction, PositiveInt, Settings
from ssdistill.settings.registry import SOURCES

MAX_PIXELS = 89_478_485
"""Pillow's default limit: a quarter of a gigabyte of RGB."""
LARGEST_SIDE = 8192
"""Pixels a side of a stored image; no network takes more."""
LATER = ("window", "labels", "max_pixels", "pixels", "color", "frames", "verify")
"""Settings that version 0.1 did not have; at their defaults they are excluded from hashes."""


def _rising(window: Any) -> Any:
    if not isinstance(window, str) and not has_usable_width(window):
        problem = "low < high" if window[0] >= window[1] else "a narrower or wider range"
        raise ValueError(f"window: [low, high] requires {problem}, got {list(window)}")
    return window


class StoreSettings(Settings):
    """How a source's images are stored, and which are read.

    Args:
        image_size: side of the stored squares in pixels; null takes the source's own default.
        max_bad: largest fraction of unreadable images that is skipped rather than refused.
        window: of images with more than 8 bits, the values that are stored as black and white:
            ``[low, high]``; ``auto``, from the smallest to the largest value of the training
            images (of arrays of fractions, [0, 1]); or ``full``, all that the type can hold.
        labels: ``none`` ignores the labels; ``auto`` takes those the source has.
        max_pixels: an image with more pixels is not decoded and counts as unreadable.
        pixels: ``stored`` decodes every image once, to a square that all views are cut from;
            ``original`` keeps the files, decodes an image whenever it is read, and cuts views from
            the whole of it; ``auto`` stores images of up to 96 pixels, what is an array anyway,
            and what is stored already.
        color: ``srgb`` converts images that have another color profile (ICC), such as Display P3,
            Adobe RGB or that of a printer; ``ignore`` reads their pixels as they are.
        frames: ``all`` makes each frame of an animation (GIF, WebP, APNG, AVIF), and each page of a
            TIFF, an image of its own; ``first`` reads the first frame of animations, and refuses
            stacks of pages.
        verify: read every image again that was indexed or stored before, even if its size and time
            are those of then, and correct what is not; of ``tar``, compare archives with their
            ``checksums.sha256``, too.
    """

    image_size: Annotated[int, Field(gt=0, le=LARGEST_SIDE)] | None = None
    max_bad: Fraction = 0.05
    window: Annotated[tuple[float, float] | Literal["auto", "full"], AfterValidator(_rising)] = (
        "auto"
    )
    labels: Literal["auto", "none"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    pixels: Literal["auto", "original", "stored"] = "auto"
    color: Color = "ignore"
    frames: FrameChoice = "first"
    verify: bool = False

    @property
    def reading(self) -> Reading:
        """How images are read."""
        return Reading(self.color, self.frames)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        fields = type(self).model_fields
        own = getattr(SOURCES[kind], "later", ()) if (kind := values.get("kind")) else ()
        for name in (*LATER, *own):
            if getattr(self, name) == fields[name].default:
                values.pop(name, None)
        values.pop("verify", None)  # what is verified is what it was before
        return values
