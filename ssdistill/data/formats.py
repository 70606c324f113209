"""The formats that images are read from, and the libraries that read the less usual ones."""

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
    if name in Image.OPEN  # what this Pillow was built with
)
"""Formats that Pillow may read; some others run external programs (EPS, WMF)."""
HEAD = 64
"""First bytes of a file, which tell these formats apart."""
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_loading = threading.Lock()


@dataclass(frozen=True)
class Plugin:
    """A format that a library of its own adds to Pillow.

    Args:
        name: of the format, in Pillow.
        title: of the format, in messages.
        remedy: what makes it readable.
        load: imports the library; raises ImportError where it is missing.
    """

    name: str
    title: str
    remedy: str
    load: Callable[[], None]


def _load_heif() -> None:
    # No dependency of the package, so type checkers do not find it.
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
"""Suffixes that name an image where its library is installed, and another file elsewhere."""


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image of one of :data:`FORMATS`, or of one that an installed library reads.

    The content decides, not the name. Nothing is decoded.

    Raises:
        BadImage: its format requires a library that is not installed.
        Exception: whatever Pillow raises for what is no image.
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
    """Raise DecompressionBombError for too many pixels: to open the image is to decode it."""
    width, height = jxl_size(file) or (0, 0)
    file.seek(0)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width}x{height} pixels")


def reads_suffix(suffix: str) -> bool:
    """Whether files with a suffix are images that an installed library reads."""
    plugin = PLUGIN_SUFFIXES.get(suffix)
    return plugin is not None and can_read(plugin)


def can_read(plugin: Plugin) -> bool:
    """Whether Pillow reads a plugin's format; the first call imports the library."""
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
