"""Color profiles (ICC) of images, and their conversion to sRGB."""

import hashlib
import io
import threading
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms

JPEG_PROFILE = b"ICC_PROFILE\0"
"""First bytes of the segments that a JPEG's profile is in."""
LARGEST_PROFILE = 16 << 20
"""Bytes; those of printers have two or three million."""
SAME = 2
"""Levels of 255 by which a color may change in a conversion to sRGB from what is sRGB."""
MOST_KEPT = 64
"""Profiles that are kept open."""
GRAY = ("1", "L", "LA", "La")
COPY = "have a color profile that is not sRGB"
UNCONVERTED = f"{COPY}; set data.color=srgb to convert them"
UNUSABLE = "have a color profile that is damaged or of another color model, and is ignored"
TOO_DEEP = f"{COPY}, which is ignored, since they have more than 8 bits"
_kept: dict[bytes, "Profile"] = {}
_keeping = threading.Lock()


@dataclass(frozen=True)
class Profile:
    """A color profile.

    Attributes:
        mode: of Pillow's images whose colors it describes: ``RGB``, ``L`` or ``CMYK``; empty of a
            profile that cannot be used.
        is_srgb: whether its colors are those of sRGB.
        transform: Pillow's, from ``mode`` to sRGB.
    """

    mode: str
    is_srgb: bool
    transform: Any


UNKNOWN = Profile("", False, None)


def profile_of(image: Image.Image) -> Profile | None:
    """Return the profile of an open image; None without one.

    One that cannot be used, or is of another color model than the image, has the ``mode`` ``""``.
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
    """Return what a user should know of an image's profile: a phrase, or None.

    Args:
        color: ``data.color``.
        deep: more than 8 bits a channel, which are never converted.
    """
    if profile is None or profile.is_srgb:
        return None
    if not profile.mode:
        return UNUSABLE if color == "srgb" else None
    if deep:
        return TOO_DEEP if color == "srgb" else None
    return None if color == "srgb" else UNCONVERTED


def to_srgb(image: Image.Image, profile: Profile) -> Image.Image:
    """Convert the colors of an 8-bit image to sRGB; alpha stays.

    Out-of-range colors are clipped as the profile's own rendering intent says.

    Args:
        profile: a usable one, see :func:`profile_of`.

    Returns:
        mode RGB, or RGBA of an image with alpha or a transparent color.
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
    assert converted is not None  # only of a conversion in place
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def jpeg_to_srgb(pixels_HWC: np.ndarray, data: bytes) -> np.ndarray:
    """Convert the pixels of a JPEG that was decoded to RGB to sRGB, if its profile is another.

    Args:
        pixels_HWC: (H, W, 3) uint8, turned or not.
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
    # Of a gray image, all channels are equal.
    plain = pixels_HWC[..., 0] if profile.mode == "L" else pixels_HWC
    return np.array(to_srgb(Image.fromarray(np.ascontiguousarray(plain)), profile))


def _opened(content: bytes) -> Profile:
    digest = hashlib.blake2b(content, digest_size=16).digest()
    with _keeping:
        if digest not in _kept:
            if len(_kept) >= MOST_KEPT:
                _kept.clear()
            try:
                _kept[digest] = _read(content)
            except Exception:  # damaged ones raise many things
                _kept[digest] = UNKNOWN
        return _kept[digest]


def _read(content: bytes) -> Profile:
    if len(content) > LARGEST_PROFILE:
        return UNKNOWN
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    # Pillow's types take the profile for a file.
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
    """Whether a transform leaves colors as they are, by a grid of them."""
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
