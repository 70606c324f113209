"""Supported image formats, and the libraries that read less usual ones."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.jxl_size import jxl_size

Image.init()
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    if name in Image.OPEN  # formats that this build of Pillow supports
)
"""Formats that Pillow may read; some others run external programs (EPS, WMF)."""
HEAD = 64
"""Number of first bytes of a file, from which its format is recognized."""
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_loading = threading.Lock()


@dataclass(frozen=True)
class Plugin:
    """A format that a separate library adds to Pillow.

    Args:
        name: of the format in Pillow.
        title: of the format in messages.
        remedy: how to make it readable.
        load: imports the library; raises ImportError if it is missing.
    """

    name: str
    title: str
    remedy: str
    load: Callable[[], None]


def _load_heif() -> None:
    # Optional, so type checkers may not find it.
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()


def _load_jxl() -> None:
    import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports]


def _load_avif() -> None:
    raise ImportError("Pillow was built without AVIF")


HEIF_PLUGIN = Plugin(
    "HEIF", "HEIC", "requires pillow-heif: pip install 'ssdistill[heif]'", _load_heif
)
JXL_PLUGIN = Plugin(
    "JXL", "JPEG XL", "requires pillow-jxl-plugin: pip install 'ssdistill[jxl]'", _load_jxl
)
AVIF_PLUGIN = Plugin(
    "AVIF", "AVIF", "requires Pillow 11.3 or later: pip install -U pillow", _load_avif
)

PLUGIN_SUFFIXES = {".heic": HEIF_PLUGIN, ".heif": HEIF_PLUGIN, ".jxl": JXL_PLUGIN}
"""Suffixes of image files that are read only if their library is installed."""


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image in one of :data:`FORMATS`, or in one that an installed library reads.

    The content determines the format, not the name. Pixels are not decoded, except by JPEG XL.

    Raises:
        BadImage: its format requires a library that is not installed.
        Exception: any error of Pillow, if the file is not an image.
    """
    head = file.read(HEAD)
    file.seek(0)
    plugin = _plugin_of(head)
    if plugin is None or plugin.name in FORMATS:
        return Image.open(file, formats=FORMATS)
    if not can_read(plugin):
        raise BadImage(f"{plugin.title} {plugin.remedy}")
    if plugin is JXL_PLUGIN:
        _check_jxl(file)
    return Image.open(file, formats=(plugin.name,))


def _check_jxl(file: IO[bytes]) -> None:
    """Raise DecompressionBombError for too many pixels, since opening the image decodes it."""
    width, height = jxl_size(file) or (0, 0)
    file.seek(0)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width}x{height} pixels")


def reads_suffix(suffix: str) -> bool:
    """Whether an installed library reads files with a suffix as images."""
    plugin = PLUGIN_SUFFIXES.get(suffix)
    return plugin is not None and can_read(plugin)


def can_read(plugin: Plugin) -> bool:
    """Whether Pillow can read the format of a plugin; the first call imports its library."""
    if plugin.name in Image.OPEN:
        return True
    with _loading:
        try:
            plugin.load()
        except ImportError:
            return False
    return plugin.name in Image.OPEN


def _plugin_of(head: bytes) -> Plugin | None:
    if head.startswith(JXL):
        return JXL_PLUGIN
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"avif", b"avis") or b"avif" in head[16:]:
            return AVIF_PLUGIN
        if head[8:12] in HEIC:
            return HEIF_PLUGIN
    return None
