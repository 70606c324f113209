"""Read pixels of more than 8 bits, and map them to uint8 through a window."""

from typing import IO, TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.bands import BITS, PHOTOMETRIC
from ssdistill.data.formats import open_image

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

SAMPLE_FORMAT, WHITE_IS_ZERO, UNSIGNED, SIGNED = 339, 0, 1, 2
PNG, PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24
"""Signature of a PNG, and the offset of its bit depth."""
EIGHT_BIT = (b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
"""First bytes of formats with at most 8 bits: JPEG, GIF, BMP, WebP."""
STRIP_PIXELS = 1 << 20
"""Pixels rendered at a time, as float64."""
Window = tuple[float, float]
WIDEST = 1e300
"""Largest width of a window; the smallest is its inverse. Beyond, float64 overflows."""


def is_deep(file: IO[bytes], frame: int = 0) -> bool:
    """Whether a frame of an image file has more than 8 bits per channel, by its header."""
    head = file.read(PNG_DEPTH + 1)
    file.seek(0)
    if head.startswith(PNG):
        return head[PNG_DEPTH:] == b"\x10"
    if not head or head.startswith(EIGHT_BIT):
        return False
    with open_image(file) as image:
        if frame and image.format == "TIFF":
            image.seek(frame)
        return image.mode[0] in "IF"


def deep_pixels(image: Image.Image, file: IO[bytes]) -> np.ndarray | None:
    """Return the pixel values of an open image of more than 8 bits per channel.

    Returns:
        None for 8-bit images; otherwise (H, W), or (H, W, C) for a 16-bit PNG with color or alpha
        (gray and alpha, RGB, or RGB and alpha), in the data type of the file: uint16, int16,
        int32, uint32 or float32.

    Raises:
        BadImage: NaN or infinite values.
    """
    if image.format == "PNG" and image.mode[0] not in "IF":
        file.seek(0)
        deep = is_deep(file)
        if deep and image.tell():
            raise BadImage("a later frame of an animated PNG of 16 bits; save it as a file")
        return _png(file) if deep else None
    if image.mode[0] not in "IF":
        return None
    pixels = np.asarray(image)
    if image.format == "TIFF":
        pixels = _as_declared(pixels, image)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        # Pillow stores 16 bits in 32.
        pixels = pixels.astype(np.uint16)
    elif image.mode.startswith("I;16"):
        pixels = pixels.astype(np.uint16)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise BadImage("NaN or infinite pixels")
    return pixels


def _png(file: IO[bytes]) -> np.ndarray:
    """Read a 16-bit PNG with color or alpha, which Pillow would reduce to 8 bits."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:  # deprecated since 0.29
        raise BadImage(
            "a 16-bit PNG with color or alpha, which this torchvision cannot read; save it as TIFF"
        ) from None
    file.seek(0)
    encoded = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    return decode_image(encoded, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _as_declared(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return the values of a TIFF in their declared type, where larger is brighter."""
    tags = cast("TiffImageFile", image).tag_v2
    bits = max(tags.get(BITS, (1,)))
    kind = max(tags.get(SAMPLE_FORMAT, (UNSIGNED,)))
    if kind in (UNSIGNED, SIGNED) and pixels.dtype.kind != "f":
        sign = "i" if kind == SIGNED else "u"
        pixels = pixels.astype(f"{sign}{2 if bits <= 16 else 4}")
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            pixels = ~pixels
    return pixels


def full_range(dtype: np.dtype) -> Window:
    """Return the smallest and largest value of a type; 0 and 1 for floats."""
    if dtype.kind in "fb":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def around(value: float) -> Window:
    """Return a window of images that are constant, for which any width will do."""
    # As a float, 2**63 + 1 equals 2**63.
    return value, max(value + 1.0, float(np.nextafter(value, np.inf)))


def has_usable_width(window: Window) -> bool:
    """Whether values divided by the width of a window stay finite."""
    low, high = window
    return low < high and high - low < WIDEST and high - low > 1 / WIDEST


def render(pixels: np.ndarray, window: Window) -> np.ndarray:
    """Map values to (H, W, 3) uint8, the lower end of the window to black, the upper to white.

    Values beyond the window are clipped. Alpha, which uses the full range of its type, is
    composited on white.

    Args:
        pixels: (H, W) gray, or (H, W, C): gray and alpha, RGB, or RGB and alpha.
    """
    rows = max(1, STRIP_PIXELS // pixels.shape[1])
    strips = [pixels[top : top + rows] for top in range(0, len(pixels), rows)]
    rgb = np.concatenate([_shaded(strip, window) for strip in strips])
    return np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb


def _shaded(pixels: np.ndarray, window: Window) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8."""
    low, high = window
    color, alpha = split_alpha(pixels)
    shade = (color.astype(np.float64) - low) * 255 / (high - low)
    shade.clip(0, 255, out=shade)
    if alpha is not None:
        opacity = (alpha / full_range(alpha.dtype)[1])[..., None]
        shade = shade * opacity + 255 * (1 - opacity)
    return np.floor(shade + 0.5).astype(np.uint8)


def split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split into (H, W, 1 or 3) values and (H, W) alpha; alpha may be None."""
    if pixels.ndim == 2:
        return pixels[..., None], None
    if pixels.shape[2] in (2, 4):
        return pixels[..., :-1], pixels[..., -1]
    return pixels, None


def visible_range(pixels: np.ndarray) -> Window:
    """Return the smallest and largest value of pixels that are not fully transparent."""
    color, alpha = split_alpha(pixels)
    if alpha is not None:
        color = color[alpha > 0]
    return (float(color.min()), float(color.max())) if color.size else (np.inf, -np.inf)
