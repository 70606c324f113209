"""One or several image folders, with class folders as labels and split folders as splits."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ssdistill.data.formats import PLUGIN_SUFFIXES, can_read
from ssdistill.data.layout import Layout, read_layout
from ssdistill.data.layout_source import LayoutSource
from ssdistill.data.listing import EXTENSIONS, WITH_BANDS
from ssdistill.errors import NO_FILE, UserError, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)


class Folder(LayoutSource):
    """A folder of image files, searched recursively.

    ``path/train`` and ``path/test`` (or ``val``, ``Training`` and ``Testing``, …) are used as
    splits. Otherwise test images are held out by a hash of their relative name, so that the same
    files yield the same split everywhere. Images in class folders (``[train/]<class>/...``) are
    labeled; if any image is outside a class folder, or each has a folder of its own, all are
    unlabeled and ``test`` is used for label-free metrics only. Images are files with a usual
    suffix (``.jpg``, ``.png``, ``.tif``, …), or files without a suffix whose first bytes are those
    of an image; the content determines the format. With ``data.channels``, ``.npy`` and ``.dcm``
    files are images, too. Unreadable images are skipped and reported; more of them than
    ``data.max_bad`` are an error. Hidden files, ``__MACOSX`` and other files are skipped and
    counted.

    By default images are stored as squares of 64 pixels (123 MB per 10,000 images), suitable for
    training on a CPU; ``data.image_size`` sets another size.

    Args:
        path: a folder, or a list of folders. Each is sorted into splits and classes separately;
            then their splits are joined, and classes of equal name are merged.
        test_fraction: fraction of each class to hold out if the folder has no test images; by
            default 0.2 with classes and 0.1 without. 0 trains on all images.
        include: patterns of images to read, relative to the folder, such as
            ``["cats/**", "*.png"]``. ``*`` matches anything but ``/``, ``**`` matches anything; a
            pattern without ``/`` matches names at any depth.
        exclude: patterns of images and folders to ignore, even if ``include`` matches them.
    """

    kind = "folder"
    test_remedy = "add a folder of test images"
    later = ("include", "exclude")

    def __init__(
        self,
        *,
        path: str | Annotated[list[str], Field(min_length=1)],
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ):
        self.path, self.test_fraction = path, test_fraction
        self.include, self.exclude = include, exclude

    @property
    def _paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def _title(self) -> str:
        return f"data.path={', '.join(map(shown, self._paths))}"

    @cached_property
    def _layout(self) -> Layout:
        folders = [user_path(path) for path in self._paths]
        for path, folder in zip(self._paths, folders, strict=True):
            if not folder.is_dir():
                reason = "a file, not a folder" if folder.exists() else NO_FILE
                raise UserError(f"data.path={shown(path)}: {reason}; check the path")
        _check_overlap(folders)
        try:
            patterns = self.include, self.exclude
            suffixes = WITH_BANDS if self.any_bands else EXTENSIONS
            layout = read_layout(folders, self.test_fraction, *patterns, suffixes)
        except OSError as error:
            reason = (
                f"cannot list {shown(error.filename)} ({error.strerror}); check its permissions"
            )
            raise UserError(f"{self._title}: {reason}") from error
        if not len(layout.train):
            raise UserError(f"{self._title}: {_no_images(layout, self.any_bands)}")
        if layout.skipped:
            log.info("%s: skipping %d other files", self._title, layout.skipped)
        return layout

    def warnings(self, labels: bool) -> tuple[str, ...]:
        layout = self._layout
        skipped = [
            f"{self._title}: skipped {layout.others[suffix]} {suffix} files; {plugin.title} "
            f"{plugin.remedy}"
            for suffix, plugin in PLUGIN_SUFFIXES.items()
            if layout.others[suffix] and not can_read(plugin)
        ]
        classes = layout.class_warnings if labels else ()
        return (*layout.split_warnings, *classes, *skipped)

    @property
    def description(self) -> str:
        return (
            f"folder {', '.join(shown(Path(path).name) for path in self._paths)}, {self._counts}, "
            f"{self._layout.skipped} other files skipped"
        )


def _check_overlap(folders: Sequence[Path]) -> None:
    """Raise UserError if a folder is equal to or inside another: images would count twice."""
    real = [os.path.realpath(folder) for folder in folders]
    for k, inner in enumerate(real):
        for j, outer in enumerate(real):
            if k != j and os.path.commonpath([inner, outer]) == outer:
                raise UserError(
                    f"data.path: {shown(folders[k])} is inside {shown(folders[j])}, so its images "
                    "would count twice; remove one of them"
                )


def _no_images(layout: Layout, any_bands: bool) -> str:
    """Explain why there are no training images, and what to do."""
    if len(layout.test):
        return "no images in its training folder; add some, or rename the folder"
    known = WITH_BANDS if any_bands else EXTENSIONS
    others = ", ".join(f"{count} {suffix}" for suffix, count in layout.others.most_common(5))
    others = f": {shown(others)}" if others else ""
    readable = sorted(WITH_BANDS.difference(known).intersection(layout.others))
    channels = f"set data.channels to read {' and '.join(readable)} files, or " if readable else ""
    return (
        f"no images in this folder ({layout.skipped} other files{others}); {channels}add files "
        f"with a suffix of {', '.join(sorted(known))}, or without one"
    )
