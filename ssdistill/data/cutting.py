"""Cut views from an original: decoded once, at the smallest size that all of them allow."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from ssdistill.data.bad_image import BadImage
from ssdistill.data.color_profile import jpeg_to_srgb
from ssdistill.data.decode import read_pixels
from ssdistill.data.deep_pixels import Window, full_range, render
from ssdistill.data.header import JPEG_START, jpeg_components
from ssdistill.settings import Size, height_width

REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG can be decoded smaller. Others take longer and look worse than these."""


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, in pixels, and the size that it becomes."""

    top: int
    left: int
    height: int
    width: int
    size: Size

    @property
    def shrinking(self) -> float:
        """How many pixels of the image make one of the view, where they are fewest."""
        height, width = height_width(self.size)
        return min(self.height / height, self.width / width)

    def over(self, factor: int) -> "Box":
        """Return the box on an image decoded ``factor`` times smaller.

        Its edges come to lie on pixels of that image: cut where they were drawn, a view would be
        shifted by up to half of such a pixel.
        """
        if factor == 1:
            return self
        edges = (self.top, self.left, self.height, self.width)
        top, left, height, width = (round(edge / factor) for edge in edges)
        return Box(top, left, max(1, height), max(1, width), self.size)


def reduction_of(boxes: Sequence[Box]) -> int:
    """Return the largest factor by which an image may shrink and still fill every view.

    A view cut from the smaller image equals that of the whole one to 49 dB (median; the worst in
    twenty to 42 dB), of photographs enlarged to 2000x1500.
    """
    free = min(box.shrinking for box in boxes)
    return next((factor for factor in REDUCTIONS if free >= factor), 1)


def decode(
    data: bytes,
    reduction: int = 1,
    window: Window | None = None,
    *,
    color: str = "ignore",
    frame: int | None = None,
) -> tuple[Tensor, int]:
    """Decode an image as it is shown.

    Args:
        data: an encoded file.
        reduction: how many times smaller it may be, a power of two up to 8.
        window: of an image of more than 8 bits, the values that become black and white.
        color, frame: see :func:`ssdistill.data.decode.read_pixels`.

    Returns:
        (3, H, W) uint8, and how many times smaller it is.

    Raises:
        BadImage: see :func:`ssdistill.data.decode.read_pixels`.
    """
    if data.startswith(JPEG_START) and jpeg_components(data) in (1, 3):
        try:
            image_CHW, factor = _of_jpeg(data, reduction)
            return (_srgb(image_CHW, data) if color == "srgb" else image_CHW), factor
        except (RuntimeError, OSError, SyntaxError, ValueError):
            pass  # damaged, or unusual: the reader below knows what to say, or how to read it
    pixels = read_pixels(data, color=color, frame=frame)
    if pixels.dtype != np.uint8:
        pixels = render(pixels, window or full_range(pixels.dtype))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), 1


def _of_jpeg(data: bytes, reduction: int) -> tuple[Tensor, int]:
    if reduction > 1:
        return _drafted(data, reduction)
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image_CHW = decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
    return cast("Tensor", image_CHW), 1  # a list only of a list


def _srgb(image_CHW: Tensor, data: bytes) -> Tensor:
    pixels = image_CHW.permute(1, 2, 0).numpy()
    converted = jpeg_to_srgb(pixels, data)
    return image_CHW if converted is pixels else torch.from_numpy(converted).permute(2, 0, 1)


def _drafted(data: bytes, reduction: int) -> tuple[Tensor, int]:
    """Decode a JPEG from the lower frequencies of its blocks alone, as libjpeg does it."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        whole = image.width
        image.draft("RGB", (image.width // reduction, image.height // reduction))
        factor = round(whole / image.width)
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1), factor


def cut(image_CHW: Tensor, box: Box) -> Tensor:
    """Cut a box from an image and resize it, antialiased, as torchvision's ``resized_crop``.

    Args:
        image_CHW: uint8, or float32 in [0, 1].

    Returns:
        (C, height, width) of the image's type.
    """
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    part_1CHW = image_CHW[None, :, rows, columns]
    if 0 in part_1CHW.shape:
        raise BadImage("the image is smaller than its header says")
    sides = height_width(box.size)
    view_CHW = interpolate(part_1CHW, sides, mode="bilinear", antialias=True, align_corners=False)[
        0
    ]
    # The weights of a pixel sum up to 1 but for rounding.
    return view_CHW.clamp_(0, 1) if view_CHW.is_floating_point() else view_CHW
