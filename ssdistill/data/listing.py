"""List the images below a folder; a file is opened only if it has no suffix."""

import logging
import os
import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.data.formats import reads_suffix
from ssdistill.data.names import Names, NameWriter
from ssdistill.data.patterns import matcher
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
WITH_BANDS = EXTENSIONS | {".npy", ".dcm", ".dicom"}
"""Suffixes where images may have any number of bands."""
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
LEFT_OUT = "left out by data.include or data.exclude"


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        names: of images, relative to the folder, with ``/``, sorted by code point.
        folders: one image of each folder with images directly in it, the first; sorted.
        folder_N: (N,) int32, each image's position in ``folders``.
        others: how many other files there are by suffix; hidden ones stand under ``hidden``.
    """

    names: Names
    folders: list[str] = field(default_factory=list)
    folder_N: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    others: Counter[str] = field(default_factory=Counter)

    @property
    def skipped(self) -> int:
        """Number of files that are not images, or left out by patterns."""
        return self.others.total()


def list_images(
    folder: Path,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffixes: frozenset[str] = EXTENSIONS,
) -> Listing:
    """List all images below ``folder``.

    Linked folders are followed, except into one the walk is already in. Hidden folders, and
    those of ``PASSED_OVER``, are not entered. A file without a suffix is an image if it begins
    like one. A long listing logs its progress.

    Args:
        include: patterns (:mod:`ssdistill.data.patterns`) one of which an image matches; none
            for all images.
        exclude: patterns of files and folders that are left out.
        suffixes: of images, in lower case.

    Raises:
        UserError: a folder of the system, a great many files and no image among the first, or
            linked folders that lead into one in a great many ways.
    """
    if os.path.realpath(folder) in SYSTEM:
        raise UserError(f"data.path={shown(folder)} is a system folder; set data.path "
                        "to the folder that holds the images")  # fmt: skip
    return _Walk(folder, include, exclude, suffixes).listing()


class _Walk:
    """One walk through a folder, in the order of the paths as text."""

    def __init__(
        self,
        folder: Path,
        include: Sequence[str],
        exclude: Sequence[str],
        suffixes: frozenset[str],
    ):
        self.folder, self.everything, self.suffixes = folder, not include, suffixes
        self.included = matcher(include, "data.include")
        self.excluded = matcher(exclude, "data.exclude")
        self.writer, self.others, self.ways = NameWriter(), Counter[str](), Counter[str]()
        self.runs: list[tuple[int, int]] = []
        self.firsts: dict[str, tuple[int, str]] = {}
        self.progress = _Progress(folder)

    def listing(self) -> Listing:
        # What is left to do, last first: files of a folder, or a folder with those it lies in.
        pending: list[tuple[str, list[str] | tuple[str, ...]]]
        pending = [("", (os.path.realpath(self.folder),))]
        while pending:
            below, what = pending.pop()
            if isinstance(what, list):
                self._take(below, what)
            else:
                pending += reversed(self._entries(below, what))
        names = self.writer.names()
        counts = [count for _, count in self.runs]
        folder_N = np.repeat(np.array([at for at, _ in self.runs], dtype=np.int32), counts)
        return Listing(names, [first for _, first in self.firsts.values()], folder_N, self.others)

    def _take(self, below: str, files: list[str]) -> None:
        for name in files:
            self.writer.add(below + name)
        at, _ = self.firsts.setdefault(below, (len(self.firsts), below + files[0]))
        self.runs.append((at, len(files)))

    def _entries(
        self, below: str, above: tuple[str, ...]
    ) -> list[tuple[str, list[str] | tuple[str, ...]]]:
        """Return what is in a folder, sorted as paths: runs of images, and folders."""
        self._count_ways(above[-1])
        files: list[str] = []
        folders: dict[str, tuple[str, ...]] = {}
        with os.scandir(self.folder / below) as entries:
            for entry in entries:
                if (real := self._sorted_out(entry, below, files)) and real not in above:
                    folders[f"{entry.name}/"] = (*above, real)
                self.progress.count(len(self.writer) + len(files), self.others)
        files.sort()
        found: list[tuple[str, list[str] | tuple[str, ...]]] = []
        start = 0
        for name in sorted(folders):
            stop = bisect(files, name)
            if stop > start:
                found.append((below, files[start:stop]))
            found.append((below + name, folders[name]))
            start = stop
        if start < len(files):
            found.append((below, files[start:]))
        return found

    def _sorted_out(self, entry: os.DirEntry, below: str, files: list[str]) -> str | None:
        """Add an entry to the images or count it; return where a folder to enter really is."""
        hidden, path = entry.name.startswith("."), below + entry.name
        if _is_folder(entry):
            if hidden or entry.name in PASSED_OVER or self.excluded(path):
                return None
            return os.path.realpath(entry.path)
        if hidden:
            self.others["hidden"] += 1
        elif not _is_image(entry, self.suffixes):
            suffix = os.path.splitext(entry.name)[1].lower()
            self.others[suffix or "without a suffix"] += 1
        elif self.excluded(path) or not (self.everything or self.included(path)):
            self.others[LEFT_OUT] += 1
        else:
            files.append(entry.name)
        return None

    def _count_ways(self, real: str) -> None:
        self.ways[real] += 1
        if self.ways[real] > MOST_WAYS:
            raise UserError(
                f"data.path={shown(self.folder)}: linked folders lead into {shown(real)} in more "
                f"than {MOST_WAYS} ways; remove some of the links"
            )


class _Progress:
    """Log the progress of a long listing; raise UserError if it finds no image."""

    def __init__(self, folder: Path):
        self.folder = shown(folder)
        self.num_entries, self.last_message = 0, time.monotonic()

    def count(self, num_images: int, others: Counter[str]) -> None:
        """Count one file or folder."""
        self.num_entries += 1
        if not num_images and self.num_entries > MOST_OTHERS:
            raise UserError(
                f"data.path={self.folder}: no image among the first {MOST_OTHERS} files; set "
                "data.path to the folder that holds the images"
            )
        if time.monotonic() - self.last_message > SECONDS:
            self.last_message = time.monotonic()
            log.warning(
                "data.path=%s: %d images and %d other files so far",
                *(self.folder, num_images, others.total()),
            )


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_image(entry: os.DirEntry, suffixes: frozenset[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix:
        return suffix in suffixes or reads_suffix(suffix)
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
