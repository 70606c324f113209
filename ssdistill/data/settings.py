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
"""Largest side of a stored image, in pixels."""
LATER = (
    *("window", "labels", "max_pixels", "pixels"),
    *("channels", "view_size", "resize", "display"),
    *("color", "frames", "verify"),
)
"""Settings added after version 0.1; at their defaults they are excluded from hashes."""


def _check_window(window: Any) -> Any:
    if isinstance(window, str):
        return window
    several = isinstance(window[0], tuple)
    for pair in window if several else [window]:
        if not has_usable_width(pair):
            problem = "low < high" if pair[0] >= pair[1] else "a narrower or wider range"
            raise ValueError(f"[low, high] requires {problem}")
    return window


def _check_size(size: Any) -> Any:
    if isinstance(size, (list, tuple)):
        whole = [isinstance(side, int) and not isinstance(side, bool) for side in size]
        if len(size) != 2 or not all(whole) or min(size) < 1:
            raise ValueError("must be a side in pixels, or [height, width], both above 0")
    elif isinstance(size, int) and size < 1:
        raise ValueError("must be a side in pixels, or [height, width], both above 0")
    return size


def _pairs(window: Any) -> Any:
    """Check the form of a list of windows, since errors of a union are long."""
    if not isinstance(window, (list, tuple)):
        return window
    pairs = window if window and isinstance(window[0], (list, tuple)) else [window]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("must be auto, full, [low, high], or a list of such pairs")
    return window


def _check_display(display: Any) -> Any:
    """Check the form of a list of positions, since each missing one is a problem of its own."""
    if display is None:
        return display
    is_list = isinstance(display, (list, tuple)) and len(display) == 3
    if not is_list or any(
        not isinstance(place, int) or isinstance(place, bool) or place < 0 for place in display
    ):
        raise ValueError(
            "must be three positions in data.channels, from 0, to show as red, green and blue, "
            "such as [2, 1, 0] or, for one channel in gray, [0, 0, 0]; or null to choose them"
        )
    return display


def _storable(size: Any) -> Any:
    if size is not None and max(height_width(size)) > LARGEST_SIDE:
        raise ValueError(f"sides of at most {LARGEST_SIDE} pixels are possible")
    return size


Windows = Annotated[tuple[Window, ...], Field(min_length=1)]
StoredSize = Annotated[Size, BeforeValidator(_check_size), AfterValidator(_storable)]


class StoreSettings(Settings):
    """How to read and store the images of a source.

    Args:
        image_size: side of the stored squares in pixels, or ``[height, width]``; null means the
            default of the source.
        max_bad: largest fraction of unreadable images to skip; more of them are an error.
        window: for images of more than 8 bits, the values that map to black and white:
            ``[low, high]``; ``auto`` for the smallest and largest value of the training images
            ([0, 1] for arrays of floats); or ``full`` for the whole range of the data type. With
            ``channels``, ``auto`` is measured for each channel, for arrays of floats, too, and a
            list has one pair per channel: ``[[0, 3000], [200, 4000]]``.
        labels: ``none`` ignores labels; ``auto`` uses those of the source, if any.
        max_pixels: images with more pixels are not decoded, and count as unreadable.
        pixels: ``stored`` decodes every image once, to a square that all views are cropped from;
            ``original`` decodes an image whenever it is read, and crops views from the whole of
            it; ``auto`` stores arrays, images of up to 96 pixels, and those already stored.
        channels: bands of a file or an array to use as channels, from 0, in this order:
            ``[3, 2, 1]``, or with names ``{red: 3, green: 2, nir: 7}``. Their values are used as
            they are in the file, even those of an alpha band; the window maps images of more than
            8 bits to [0, 1]. null reads every image as 8-bit RGB.
        view_size: size of the images that networks see, a side or ``[height, width]``: of training
            views and, in evaluation, of the central part of stored images; null means
            ``image_size``.
        resize: how images are brought to ``image_size``: ``crop`` crops the central part of that
            aspect ratio, ``squash`` ignores the aspect ratio, ``pad`` fits in the whole image, with
            black around it. Training views of originals are always cropped from the whole image.
        display: positions in ``channels`` that reports show as red, green and blue; null uses
            those named red, green and blue, or else the first three, or the first as gray.
        color: ``srgb`` converts images that have another color profile (ICC), such as Display P3,
            Adobe RGB or that of a printer; ``ignore`` reads their pixels as they are.
        frames: ``all`` reads each frame of an animation (GIF, WebP, APNG, AVIF) and each page of a
            TIFF as a separate image; ``first`` reads the first frame of animations, and stacks of
            pages are unreadable.
        verify: read all images again that were indexed or stored before, even if their sizes and
            times are unchanged, and correct the index or the store; for ``tar``, also compare the
            archives with their ``checksums.sha256``.
        read_seconds: time after which a read of an image that has not returned, for instance from
            a network file system that stopped answering, is given up and repeated; after four
            such reads the image counts as unreadable.
    """

    image_size: StoredSize | None = None
    max_bad: Fraction = 0.05
    window: Annotated[
        Window | Literal["auto", "full"] | Windows,
        BeforeValidator(_pairs),
        AfterValidator(_check_window),
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
    display: Annotated[
        tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None,
        BeforeValidator(_check_display),
    ] = None

    color: Color = "ignore"
    frames: FrameChoice = "first"
    verify: bool = False
    read_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0

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
        """The channels, shape and display of images."""
        names = tuple(self.channels) if isinstance(self.channels, dict) else None
        bands = self.channels.values() if isinstance(self.channels, dict) else self.channels
        channels = None if bands is None else tuple(bands)
        return Form(channels, names, self.display, self.resize, self.view_size)

    @property
    def reading(self) -> Reading:
        """How images are read."""
        return Reading(self.color, self.frames, seconds=self.read_seconds)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        fields = type(self).model_fields
        own = getattr(SOURCES[kind], "later", ()) if (kind := values.get("kind")) else ()
        for name in (*LATER, *own):
            if getattr(self, name) == fields[name].default:
                values.pop(name, None)
        for name in ("verify", "read_seconds"):  # neither changes the images
            values.pop(name, None)
        return values
