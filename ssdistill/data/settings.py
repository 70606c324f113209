"""Settings shared by all data sources."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ssdistill.data.deep_pixels import has_usable_width
from ssdistill.settings import Fraction, PositiveInt, Settings
from ssdistill.settings.registry import SOURCES

MAX_PIXELS = 89_478_485
"""Pillow's default limit: a quarter of a gigabyte of RGB."""
LARGEST_SIDE = 8192
"""Pixels a side of a stored image; no network takes more."""
LATER = ("window", "labels", "max_pixels", "pixels")
"""Settings that version 0.1 did not have; at their defaults they are excluded from digests."""


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
    """

    image_size: Annotated[int, Field(gt=0, le=LARGEST_SIDE)] | None = None
    max_bad: Fraction = 0.05
    window: Annotated[tuple[float, float] | Literal["auto", "full"], AfterValidator(_rising)] = (
        "auto"
    )
    labels: Literal["auto", "none"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    pixels: Literal["auto", "original", "stored"] = "auto"

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        fields = type(self).model_fields
        own = getattr(SOURCES[kind], "later", ()) if (kind := values.get("kind")) else ()
        for name in (*LATER, *own):
            if getattr(self, name) == fields[name].default:
                values.pop(name, None)
        return values
