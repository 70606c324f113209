"""Color profiles (ICC) of images, and their conversion to sRGB."""

import hashlib
import io
import threading
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms

JPEG_PROFILE = b"ICC_PROFILE\0"
"""First bytes of the segments with the profile of a JPEG."""
LARGEST_PROFILE = 16 << 20
"""Bytes; profiles of printers have two or three million."""
SAME = 2
"""Levels, of 255, by which the conversion of sRGB to sRGB may change a color."""
MOST_CACHED = 64
"""Maximum number of profiles to cache."""
GRAY = ("1", "L", "LA", "La")
COPY = "have a color profile that is not sRGB"
UNCONVERTED = f"{COPY}; set data.color=srgb to convert them"
UNUSABLE = "have a color profile that is damaged or of another color model, and is ignored"
TOO_DEEP = f"{COPY}, which is ignored, since they have more than 8 bits"
_cached: dict[bytes, "Profile"] = {}
_caching = threading.Lock()


@dataclass(frozen=True)
class Profile:
    """A color profile.

    Attributes:
        mode: of the images in Pillow whose colors it describes: ``RGB``, ``L`` or ``CMYK``; empty
            if it is unusable.
        is_srgb: whether its colors are those of sRGB.
        transform: of Pillow, from ``mode`` to sRGB.
    """

    mode: str
    is_srgb: bool
    transform: Any


UNKNOWN = Profile("", False, None)


def profile_of(image: Image.Image) -> Profile | None:
    """Return the profile of an open image; None without one.

    A profile that is unusable, or of another color model than the image, has the ``mode`` ``""``.
    """
    content = image.info.get("icc_profile")
    if not content:
        return None
    profile = _opened(content)
    if profile.mode == "RGB":
        return UNKNOWN if image.mode in ("CMYK", "LAB") else profile
    if profile.mode == "L":
        return profile if image.mode in GRAY or image.mode[0] in "IF" else UNKNOWN
    return profile if profile.mode == image.mode else UNKNOWN


def note_of(profile: Profile | None, color: str, deep: bool) -> str | None:
    """Return a phrase for the user about the profile of an image, or None.

    Args:
        color: ``data.color``.
        deep: whether there are more than 8 bits per channel, which are never converted.
    """
    if profile is None or profile.is_srgb:
        return None
    if not profile.mode:
        return UNUSABLE if color == "srgb" else None
    if deep:
        return TOO_DEEP if color == "srgb" else None
    return None if color == "srgb" else UNCONVERTED


def to_srgb(image: Image.Image, profile: Profile) -> Image.Image:
    """Convert the colors of an 8-bit image to sRGB; alpha is unchanged.

    The rendering intent of the profile determines how out-of-range colors are clipped.

    Args:
        profile: a usable one, see :func:`profile_of`.

    Returns:
        an image of mode RGB, or RGBA if it has alpha or a transparent color.
    """
    alpha = None
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        alpha = image.convert("RGBA").getchannel("A")
    plain = image
    if image.mode in ("RGBa", "La"):
        plain = plain.convert(image.mode.upper())
    if plain.mode != profile.mode:
        plain = plain.convert(profile.mode)
    converted = ImageCms.applyTransform(plain, profile.transform)
    assert converted is not None  # None only for a conversion in place
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def jpeg_to_srgb(pixels_HWC: np.ndarray, data: bytes) -> np.ndarray:
    """Convert a JPEG that was decoded to RGB to sRGB, if it has another profile.

    Args:
        pixels_HWC: (H, W, 3) uint8, upright or as stored.
        data: the encoded file.

    Returns:
        (H, W, 3) uint8.
    """
    if data.find(JPEG_PROFILE, 0, LARGEST_PROFILE) < 0:
        return pixels_HWC
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        profile = profile_of(image)
    if profile is None or profile.is_srgb or not profile.mode:
        return pixels_HWC
    # In a gray image, all channels are equal.
    plain = pixels_HWC[..., 0] if profile.mode == "L" else pixels_HWC
    return np.array(to_srgb(Image.fromarray(np.ascontiguousarray(plain)), profile))


def _opened(content: bytes) -> Profile:
    digest = hashlib.blake2b(content, digest_size=16).digest()
    with _caching:
        if digest not in _cached:
            if len(_cached) >= MOST_CACHED:
                _cached.clear()
            try:
                _cached[digest] = _read(content)
            except Exception:  # damaged ones raise all kinds of errors
                _cached[digest] = UNKNOWN
        return _cached[digest]


def _read(content: bytes) -> Profile:
    if len(content) > LARGEST_PROFILE:
        return UNKNOWN
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    # According to the type hints of Pillow, the profile is a file.
    space: str = cast("Any", profile.profile).xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
    if mode is None:
        return UNKNOWN
    srgb = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
    # Without it, dark grays are off by up to ten levels.
    flags = ImageCms.Flags.HIGHRESPRECALC
    transform = ImageCms.buildTransform(profile, srgb, mode, "RGB", intent, flags)
    return Profile(mode, mode != "CMYK" and _is_identity(transform, mode), transform)


def _is_identity(transform: Any, mode: str) -> bool:
    """Whether a transform leaves a grid of colors unchanged."""
    if mode == "L":
        colors = np.arange(256, dtype=np.uint8)[None]
        expected = np.repeat(colors[..., None], 3, axis=2)
    else:
        level = np.arange(0, 256, 15, dtype=np.uint8)
        colors = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(1, -1, 3)
        expected = colors
    converted = ImageCms.applyTransform(Image.fromarray(colors), transform)
    difference = np.asarray(converted).astype(np.int16) - expected.astype(np.int16)
    return bool(np.abs(difference).max() <= SAME)
