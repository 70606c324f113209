"""List the images below a folder; a file is opened only if it has no suffix."""

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, shown

log = logging.getLogger(__name__)

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi")
EXTENSIONS = frozenset(
    (
        *JPEG,
        *(".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".jp2"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes of image files, in lower case."""
PASSED_OVER = ("__MACOSX", "@eaDir")
"""Folders that an archive program and a storage device leave behind."""
NETPBM = tuple(b"P%d%c" % (number, space) for number in range(1, 7) for space in b" \n\t\r")
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", *NETPBM),
)
"""First bytes of image files."""


SYSTEM = ("/", "/dev", "/proc", "/run", "/sys")
"""Folders that hold no images, or whose listing might never end."""
MOST_OTHERS = 1_000_000
"""Number of files without a single image after which the listing gives up."""
MOST_WAYS = 100
"""Ways through linked folders into one and the same; a dozen that link each other have millions."""
SECONDS = 10.0
"""Interval between two progress messages."""


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        names: of images, relative to the folder, with ``/``, sorted by code point.
        others: how many other files there are by suffix; hidden ones stand under ``hidden``.
    """

    names: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def skipped(self) -> int:
        """Number of files that are not images."""
        return self.others.total()


def list_images(folder: Path) -> Listing:
    """List all images below ``folder``.

    Linked folders are followed, except into one the walk is already in. Hidden folders, and
    those of ``PASSED_OVER``, are not entered. A file without a suffix is an image if it begins
    like one. A long listing logs its progress.

    Raises:
        UserError: a folder of the system, a great many files and no image among the first, or
            linked folders that lead into one in a great many ways.
    """
    listing = Listing()
    pending: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    if os.path.realpath(folder) in SYSTEM:
        raise UserError(f"data.path={shown(folder)} is a system folder; set data.path "
                        "to the folder that holds the images")  # fmt: skip
    progress, ways = _Progress(folder, listing), Counter[str]()
    while pending:
        below, above = pending.pop()
        ways[above[-1]] += 1
        if ways[above[-1]] > MOST_WAYS:
            raise UserError(
                f"data.path={shown(folder)}: linked folders lead into {shown(above[-1])} in more "
                f"than {MOST_WAYS} ways; remove some of the links"
            )
        with os.scandir(folder / below) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".")
                if _is_folder(entry):
                    real = os.path.realpath(entry.path)
                    if not hidden and entry.name not in PASSED_OVER and real not in above:
                        pending.append((f"{below}{entry.name}/", (*above, real)))
                elif hidden:
                    listing.others["hidden"] += 1
                elif _is_image(entry):
                    listing.names.append(below + entry.name)
                else:
                    suffix = os.path.splitext(entry.name)[1].lower()
                    listing.others[suffix or "without a suffix"] += 1
                progress.count()
    listing.names.sort()
    return listing


class _Progress:
    """Log the progress of a long listing; raise UserError if it finds no image."""

    def __init__(self, folder: Path, listing: Listing):
        self.folder, self.listing = shown(folder), listing
        self.num_entries, self.last_message = 0, time.monotonic()

    def count(self) -> None:
        """Count one file or folder."""
        self.num_entries += 1
        if not self.listing.names and self.num_entries > MOST_OTHERS:
            raise UserError(
                f"data.path={self.folder}: no image among the first {MOST_OTHERS} files; set "
                "data.path to the folder that holds the images"
            )
        if time.monotonic() - self.last_message > SECONDS:
            self.last_message = time.monotonic()
            log.warning(
                "data.path=%s: %d images and %d other files so far",
                *(self.folder, len(self.listing.names), self.listing.skipped),
            )


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_image(entry: os.DirEntry) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix:
        return suffix in EXTENSIONS
    try:
        with open_regular(entry.path) as file:
            return _has_image_signature(file.read(16))
    except (OSError, BadImage):
        return False


def _has_image_signature(head: bytes) -> bool:
    bitmap = head.startswith(b"BM") and head[6:10] == bytes(4)
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    avif = head[4:12] == b"ftypavif"
    return head.startswith(SIGNATURES) or bitmap or webp or avif
