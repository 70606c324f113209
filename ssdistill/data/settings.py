"""Settings shared by all data sources."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ssdistill.data.deep_pixels import Window, has_usable_width
from ssdistill.data.form import Form, check_channels
from ssdistill.data.reading import Color, FrameChoice, Reading
from ssdistill.data.resizing import Resize
from ssdistill.errors import UserError
from ssdistill.settings import Fraction, NonNegativeInt, PositiveInt, Settings, Size, height_width
from ssdistill.settings.registry import SOURCES

MAX_PIXELS = 89_478_485
"""Pillow's default limit: a quarter of a gigabyte of RGB."""
LARGEST_SIDE = 8192
"""Pixels a side of a stored image; no network takes more."""
LATER = (
    *("window", "labels", "max_pixels", "pixels"),
    *("channels", "view_size", "resize", "display"),
    *("color", "frames", "verify"),
)
"""Settings that version 0.1 did not have; at their defaults they are excluded from hashes."""


def _rising(window: Any) -> Any:
    if isinstance(window, str):
        return window
    several = isinstance(window[0], tuple)
    for pair in window if several else [window]:
        if not has_usable_width(pair):
            problem = "low < high" if pair[0] >= pair[1] else "a narrower or wider range"
            raise ValueError(f"window: [low, high] requires {problem}, got {list(pair)}")
    return window


def _sides(size: Any) -> Any:
    if isinstance(size, (list, tuple)):
        whole = [isinstance(side, int) and not isinstance(side, bool) for side in size]
        if len(size) != 2 or not all(whole) or min(size) < 1:
            raise ValueError("must be a side in pixels, or [height, width]")
    elif isinstance(size, int) and size < 1:
        raise ValueError("input should be greater than 0")
    return size


def _pairs(window: Any) -> Any:
    """Check the form of a window that is a list, for which a union has many words."""
    if not isinstance(window, (list, tuple)):
        return window
    pairs = window if window and isinstance(window[0], (list, tuple)) else [window]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("must be auto, full, [low, high], or a list of such pairs")
    return window


def _storable(size: Any) -> Any:
    if size is not None and max(height_width(size)) > LARGEST_SIDE:
        raise ValueError(f"sides of at most {LARGEST_SIDE} pixels are possible")
    return size


Windows = Annotated[tuple[Window, ...], Field(min_length=1)]
StoredSize = Annotated[Size, BeforeValidator(_sides), AfterValidator(_storable)]


class StoreSettings(Settings):
    """How a source's images are stored, and which are read.

    Args:
        image_size: side of the stored squares in pixels, or ``[height, width]``; null takes the
            source's own default.
        max_bad: largest fraction of unreadable images that is skipped rather than refused.
        window: of images with more than 8 bits, the values that are stored as black and white:
            ``[low, high]``; ``auto``, from the smallest to the largest value of the training
            images (of arrays of fractions, [0, 1]); or ``full``, all that the type can hold. With
            ``channels``, ``auto`` is found for each channel, always from the images' values, and
            a list has one pair for each: ``[[0, 3000], [200, 4000]]``.
        labels: ``none`` ignores the labels; ``auto`` takes those the source has.
        max_pixels: an image with more pixels is not decoded and counts as unreadable.
        pixels: ``stored`` decodes every image once, to a square that all views are cut from;
            ``original`` keeps the files, decodes an image whenever it is read, and cuts views from
            the whole of it; ``auto`` stores images of up to 96 pixels, what is an array anyway,
            and what is stored already.
        channels: bands of a file or an array that the images have, from 0, in this order:
            ``[3, 2, 1]``, or with names ``{red: 3, green: 2, nir: 7}``. They are taken as they are
            in the file, also an alpha band; images of more than 8 bits become fractions through
            the window. null makes 8-bit RGB of every image.
        view_size: size of what networks see, a side or ``[height, width]``: training views, and
            for evaluation the central part of what is stored; null is ``image_size``.
        resize: how an image becomes ``image_size``: ``crop`` takes the central part of that
            aspect, ``squash`` ignores the aspect, ``pad`` fits the whole image in, with black
            around it. Training views of originals are cut from the whole image in any case.
        display: positions in ``channels`` that reports show as red, green and blue; null takes
            those named red, green and blue, or else the first three, or the first as gray.
        color: ``srgb`` converts images that have another color profile (ICC), such as Display P3,
            Adobe RGB or that of a printer; ``ignore`` reads their pixels as they are.
        frames: ``all`` makes each frame of an animation (GIF, WebP, APNG, AVIF), and each page of a
            TIFF, an image of its own; ``first`` reads the first frame of animations, and refuses
            stacks of pages.
        verify: read every image again that was indexed or stored before, even if its size and time
            are those of then, and correct what is not; of ``tar``, compare archives with their
            ``checksums.sha256``, too.
    """

    image_size: StoredSize | None = None
    max_bad: Fraction = 0.05
    window: Annotated[
        Window | Literal["auto", "full"] | Windows,
        BeforeValidator(_pairs),
        AfterValidator(_rising),
    ] = "auto"
    labels: Literal["auto", "none"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    pixels: Literal["auto", "original", "stored"] = "auto"
    channels: Annotated[
        tuple[NonNegativeInt, ...] | dict[str, NonNegativeInt] | None,
        BeforeValidator(check_channels),
    ] = None
    view_size: StoredSize | None = None
    resize: Resize = "crop"
    display: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None

    color: Color = "ignore"
    frames: FrameChoice = "first"
    verify: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "StoreSettings":
        if self.image_size is not None:
            try:
                self.form.seen(self.image_size)
            except UserError as error:
                raise ValueError(str(error).removeprefix("data.").replace("=", ": ", 1)) from None
        several = not isinstance(self.window, str) and isinstance(self.window[0], tuple)
        if self.channels is None:
            if several:
                raise ValueError(
                    "window: a list of pairs has one for each of data.channels, which is null; set "
                    "window: [low, high], or data.channels"
                )
            if self.display is not None:
                raise ValueError("display: chooses among data.channels, which is null; remove it")
            return self
        for name, default in (("color", "ignore"), ("frames", "first")):
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"{name}: {value} cannot be combined with data.channels, which takes bands and "
                    f"pages as they are; set {name}: {default}, or remove channels"
                )
        count = len(self.channels)
        if several and len(self.window) != count:
            raise ValueError(
                f"window: has {len(self.window)} pairs for {count} channels; list one for each"
            )
        if self.display is not None and max(self.display) >= count:
            raise ValueError(
                f"display: {max(self.display)} is beyond the {count} channels, which are numbered "
                f"0 to {count - 1} in data.channels; lower it"
            )
        return self

    @property
    def form(self) -> Form:
        """What is made of each image, beyond its size."""
        names = tuple(self.channels) if isinstance(self.channels, dict) else None
        bands = self.channels.values() if isinstance(self.channels, dict) else self.channels
        channels = None if bands is None else tuple(bands)
        return Form(channels, names, self.display, self.resize, self.view_size)

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
