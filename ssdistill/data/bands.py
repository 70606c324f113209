"""Detect bands and pages that Pillow would silently drop."""

from typing import IO, TYPE_CHECKING, Any, cast

from PIL import Image

from ssdistill.data.bad_image import BadImage

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

BITS, PHOTOMETRIC, SAMPLES, EXTRA, SUBFILE = 258, 262, 277, 338, 254
"""TIFF tags."""
REDUCED, MASK = 1, 4
"""Bits of the type of a page: a smaller copy, and a mask of transparency."""
COLORS = {2: 3, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
"""Number of color bands by TIFF photometric interpretation; all others have one."""
ALPHA = ((1,), (2,), (999,))
"""Values of the TIFF tag ExtraSamples that declare one alpha band; the last is Corel's."""
HEAD = 1 << 16
MOST_SUGGESTED = 16
"""Largest number of bands that a message lists."""


def check_bands(image: Image.Image) -> None:
    """Check that Pillow would drop neither a band nor half of the bits of a color.

    Raises:
        BadImage: a band that is neither a color nor declared as alpha, or 16-bit color that
            Pillow reads as 8-bit.
    """
    if image.format == "TIFF":
        _check_tiff(image)
    elif image.format == "JPEG2000" and image.mode in ("RGBA", "LA"):
        file: IO[bytes] = cast("Any", image).fp
        file.seek(0)
        # The box that defines the channels.
        if b"cdef" not in file.read(HEAD):
            raise BadImage(_undeclared(len(image.mode), 1))


def _check_tiff(image: Image.Image) -> None:
    tags = cast("TiffImageFile", image).tag_v2
    samples = tags.get(SAMPLES, 1)
    surplus = samples - COLORS.get(tags.get(PHOTOMETRIC, 1), 1)
    declared = surplus == 1 and tuple(tags.get(EXTRA, ())) in ALPHA
    if surplus > 0 and not declared:
        raise BadImage(_undeclared(samples, surplus))
    if samples > 1 and max(tags.get(BITS, (8,))) > 8:
        raise BadImage(
            "a 16-bit color TIFF, which would lose 8 bits; save it as a 16-bit PNG, or set "
            f"data.channels={suggested(samples)}"
        )


def _undeclared(bands: int, surplus: int) -> str:
    extra = "one of which is" if surplus == 1 else f"{surplus} of which are"
    return (
        f"{bands} bands, {extra} neither a color nor declared as alpha; save it as RGB or gray, or "
        f"set data.channels={suggested(bands)}"
    )


def suggested(bands: int) -> str:
    """Return a value of ``data.channels`` for images with ``bands`` bands, for messages."""
    all_bands = list(range(bands)) if bands <= MOST_SUGGESTED else f"[0, 1, …, {bands - 1}]"
    return f"{all_bands}, or a choice of them"


def is_stack(image: Image.Image) -> bool:
    """Whether a TIFF has pages other than smaller copies and masks of the first one."""
    if image.format != "TIFF":
        return False
    first = image.size
    try:
        image.seek(1)  # to count the pages, Pillow would set up each, and fail on a mask
    except EOFError:
        return False
    except SyntaxError:  # its tags are read
        if not _page_kind(image) & MASK:
            raise
    other = not _page_kind(image) & (REDUCED | MASK) and not image.size < first
    image.seek(0)
    return other


def _page_kind(image: Image.Image) -> int:
    return int(cast("TiffImageFile", image).tag_v2.get(SUBFILE, 0))
