"""Settings shared by all data sources."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ssdistill.data.deep_pixels import has_usable_width
from ssdistill.settings import Fraction, PositiveInt, Settings
from ssdistill.settings.registry import SOURCES

MAX_PIXELS = 89_478_485
"""Pillow's default limit: a quarter of a gigabyte of RGB."""
LARGEST_SIDE = 8192
"""Largest side of a stored image, in pixels."""
LATER = ("window", "labels", "max_pixels", "pixels")
"""Settings added after version 0.1; at their defaults they are excluded from hashes."""


def _rising(window: Any) -> Any:
    if not isinstance(window, str) and not has_usable_width(window):
        problem = "low < high" if window[0] >= window[1] else "a narrower or wider range"
        raise ValueError(f"window: [low, high] requires {problem}, got {list(window)}")
    return window


class StoreSettings(Settings):
    """How to read and store the images of a source.

    Args:
        image_size: side of the stored squares in pixels; null means the default of the source.
        max_bad: largest fraction of unreadable images to skip; more of them are an error.
        window: for images of more than 8 bits, the values that map to black and white:
            ``[low, high]``; ``auto`` for the smallest and largest value of the training images
            ([0, 1] for arrays of floats); or ``full`` for the whole range of the data type.
        labels: ``none`` ignores labels; ``auto`` uses those of the source, if any.
        max_pixels: images with more pixels are not decoded, and count as unreadable.
        pixels: ``stored`` decodes every image once, to a square that all views are cropped from;
            ``original`` decodes an image whenever it is read, and crops views from the whole of
            it; ``auto`` stores arrays, images of up to 96 pixels, and those already stored.
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
