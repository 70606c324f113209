"""List the images below a folder, by suffix; only files without a suffix are opened."""

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
"""Suffixes of image files with any number of channels."""
IGNORED_FOLDERS = ("__MACOSX", "@eaDir")
"""Folders created by archive programs (macOS) and storage devices (Synology)."""
NETPBM = tuple(b"P%d%c" % (number, space) for number in range(1, 7) for space in b" \n\t\r")
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", *NETPBM),
)
"""First bytes of image files."""


SYSTEM = ("/", "/dev", "/proc", "/run", "/sys")
"""Folders without images, or whose listing might never end."""
MOST_OTHERS = 1_000_000
"""Number of files without a single image at which listing stops with an error."""
MOST_ROUTES = 100
"""Maximum number of routes into one folder through links; a dozen folders that link to each other
have millions."""
SECONDS = 10.0
"""Interval between two progress messages."""
EXCLUDED = "excluded by data.include or data.exclude"


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        names: of images, relative to the folder, with ``/``, sorted by code point.
        folders: the first image of each folder that directly contains images, sorted.
        folder_N: (N,) int32, each image's position in ``folders``.
        others: number of other files by suffix, with hidden ones under ``hidden``.
    """

    names: Names
    folders: list[str] = field(default_factory=list)
    folder_N: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    others: Counter[str] = field(default_factory=Counter)

    @property
    def skipped(self) -> int:
        """Number of files that are not images, or are excluded by patterns."""
        return self.others.total()


def list_images(
    folder: Path,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffixes: frozenset[str] = EXTENSIONS,
) -> Listing:
    """List all images below ``folder``.

    Links to folders are followed, unless they lead to a parent. Hidden folders and
    ``IGNORED_FOLDERS`` are skipped. A file without a suffix is an image if its first bytes are
    those of an image format. Long listings log their progress.

    Args:
        include: patterns (:mod:`ssdistill.data.patterns`) of images; empty for all images.
        exclude: patterns of files and folders to ignore.
        suffixes: of images, in lower case.

    Raises:
        UserError: a system folder, no image among the first :data:`MOST_OTHERS` files, or more
            than :data:`MOST_ROUTES` routes into one folder through links.
    """
    if os.path.realpath(folder) in SYSTEM:
        raise UserError(f"data.path={shown(folder)} is a system folder; set data.path "
                        "to the folder that holds the images")  # fmt: skip
    return _Walk(folder, include, exclude, suffixes).listing()


class _Walk:
    """One walk through a folder, in lexical order of the paths."""

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
        self.writer, self.others, self.routes = NameWriter(), Counter[str](), Counter[str]()
        self.runs: list[tuple[int, int]] = []
        self.firsts: dict[str, tuple[int, str]] = {}
        self.progress = _Progress(folder)

    def listing(self) -> Listing:
        # A stack of pending work: files of a folder, or a folder with its parents.
        pending: list[tuple[str, list[str] | tuple[str, ...]]]
        pending = [("", (os.path.realpath(self.folder),))]
        while pending:
            below, item = pending.pop()
            if isinstance(item, list):
                self._add(below, item)
            else:
                pending += reversed(self._entries(below, item))
        names = self.writer.names()
        counts = [count for _, count in self.runs]
        folder_N = np.repeat(np.array([at for at, _ in self.runs], dtype=np.int32), counts)
        return Listing(names, [first for _, first in self.firsts.values()], folder_N, self.others)

    def _add(self, below: str, files: list[str]) -> None:
        for name in files:
            self.writer.add(below + name)
        at, _ = self.firsts.setdefault(below, (len(self.firsts), below + files[0]))
        self.runs.append((at, len(files)))

    def _entries(
        self, below: str, above: tuple[str, ...]
    ) -> list[tuple[str, list[str] | tuple[str, ...]]]:
        """Return runs of images and subfolders of a folder, in lexical order of their paths."""
        self._count_routes(above[-1])
        files: list[str] = []
        folders: dict[str, tuple[str, ...]] = {}
        with os.scandir(self.folder / below) as entries:
            for entry in entries:
                if (real := self._sort_entry(entry, below, files)) and real not in above:
                    folders[f"{entry.name}/"] = (*above, real)
                self.progress.count(len(self.writer) + len(files), self.others)
        files.sort()
        items: list[tuple[str, list[str] | tuple[str, ...]]] = []
        start = 0
        for name in sorted(folders):
            stop = bisect(files, name)
            if stop > start:
                items.append((below, files[start:stop]))
            items.append((below + name, folders[name]))
            start = stop
        if start < len(files):
            items.append((below, files[start:]))
        return items

    def _sort_entry(self, entry: os.DirEntry, below: str, files: list[str]) -> str | None:
        """Add an image to ``files``, or count another file; return the real path of a folder."""
        hidden, path = entry.name.startswith("."), below + entry.name
        if _is_folder(entry):
            if hidden or entry.name in IGNORED_FOLDERS or self.excluded(path):
                return None
            return os.path.realpath(entry.path)
        if hidden:
            self.others["hidden"] += 1
        elif not _is_image(entry, self.suffixes):
            suffix = os.path.splitext(entry.name)[1].lower()
            self.others[suffix or "without a suffix"] += 1
        elif self.excluded(path) or not (self.everything or self.included(path)):
            self.others[EXCLUDED] += 1
        else:
            files.append(entry.name)
        return None

    def _count_routes(self, real: str) -> None:
        self.routes[real] += 1
        if self.routes[real] > MOST_ROUTES:
            raise UserError(
                f"data.path={shown(self.folder)}: links lead to {shown(real)} by more than "
                f"{MOST_ROUTES} routes; remove some of the links"
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
                "data.path=%s: found %d images and %d other files so far",
                *(self.folder, num_images, others.total()),
            )


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
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
