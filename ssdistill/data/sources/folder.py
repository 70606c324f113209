"""An image folder, or several: class folders are labels, and split folders are splits."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ssdistill.data.formats import PLUGIN_SUFFIXES, can_read
from ssdistill.data.layout import Layout, read_layout
from ssdistill.data.listing import EXTENSIONS, WITH_BANDS
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)


class Folder(Source):
    """A folder of image files, searched recursively.

    With ``path/train`` and ``path/test`` (or ``val``, ``Training`` and ``Testing``, …) those are
    the splits. Otherwise images are held out for ``test`` by a hash of their relative name, so
    that the same files give the same split anywhere. Images in class folders
    (``[train/]<class>/...``) are labeled; as soon as one lies outside any, or each has a folder
    of its own, all are unlabeled and ``test`` serves label-free measurements only. An image is
    a file that is named like one (``.jpg``, ``.png``, ``.tif``, …) or begins like one and has no
    suffix; its content decides how it is read. One that cannot be read is skipped and named, and
    more than ``data.max_bad`` of them are refused. With ``data.channels``, ``.npy`` and ``.dcm``
    are images, too. Hidden files, ``__MACOSX`` and files that are
    no images are skipped and counted.

    Images of a folder have no common size. They are stored as squares of 64 pixels, which
    keeps 10,000 images at 123 MB and trains on a CPU; ``data.image_size`` sets another size.

    Args:
        path: the folder, or a list of several. Each is sorted into splits and classes by itself;
            then they are joined, and classes of one name are one class.
        test_fraction: fraction of each class held out where the folder has no test images of its
            own; by default 0.2 with classes and 0.1 without. 0 trains on everything.
        include: patterns of images relative to the folder, such as ``["cats/**", "*.png"]``; only
            images that match one are read. ``*`` stands for anything but ``/``, ``**`` for
            anything; a pattern without ``/`` matches names at any depth.
        exclude: patterns of images and folders that are left out, also of what ``include`` has.
    """

    kind = "folder"
    default_image_size = 64
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
    def _said(self) -> str:
        return f"data.path={', '.join(map(shown, self._paths))}"

    @cached_property
    def _layout(self) -> Layout:
        folders = [user_path(path) for path in self._paths]
        for path, folder in zip(self._paths, folders, strict=True):
            if not folder.is_dir():
                reason = "is a file, not a folder" if folder.exists() else "no such folder"
                raise UserError(f"data.path={shown(path)}: {reason}")
        _refuse_overlap(folders)
        try:
            patterns = self.include, self.exclude
            suffixes = WITH_BANDS if self.any_bands else EXTENSIONS
            layout = read_layout(folders, self.test_fraction, *patterns, suffixes)
        except OSError as error:
            reason = f"cannot list {shown(error.filename)} ({error.strerror})"
            raise UserError(f"{self._said}: {reason}") from error
        if not len(layout.train):
            raise UserError(f"{self._said}: {_nothing(layout)}")
        if layout.skipped:
            log.info("%s: skipped %d other files", self._said, layout.skipped)
        return layout

    @property
    def has_labels(self) -> bool:
        return self.has_test and self._layout.train.labeled and self._layout.test.labeled

    @property
    def has_test(self) -> bool:
        return len(self._layout.test) > 0

    def warnings(self, labels: bool) -> tuple[str, ...]:
        layout = self._layout
        skipped = [
            f"{self._said}: skipped {layout.others[suffix]} {suffix} files; {plugin.title} "
            f"{plugin.remedy}"
            for suffix, plugin in PLUGIN_SUFFIXES.items()
            if layout.others[suffix] and not can_read(plugin)
        ]
        classes = layout.class_warnings if labels else ()
        return (*layout.split_warnings, *classes, *skipped)

    @property
    def description(self) -> str:
        layout = self._layout
        return (
            f"folder {', '.join(shown(Path(path).name) for path in self._paths)}, "
            f"{'labeled' if self.has_labels else 'unlabeled'}, "
            f"{len(layout.train)} train and {len(layout.test)} test images, "
            f"{layout.skipped} other files skipped"
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if not len(split):
            raise UserError(
                f"{self._said} has no {name} images; raise "
                f"data.test_fraction (now {self.test_fraction})"
            )
        return split


def _refuse_overlap(folders: Sequence[Path]) -> None:
    """Raise UserError if one folder is another or inside it: its images would count twice."""
    real = [os.path.realpath(folder) for folder in folders]
    for k, inner in enumerate(real):
        for j, outer in enumerate(real):
            if k != j and os.path.commonpath([inner, outer]) == outer:
                raise UserError(
                    f"data.path: {shown(folders[k])} is inside {shown(folders[j])}, so its images "
                    "would count twice; remove one of them"
                )


def _nothing(layout: Layout) -> str:
    """Explain why there is no image to train on."""
    if len(layout.test):
        return "no images below its training folder"
    known = ", ".join(sorted(EXTENSIONS))
    seen = ", ".join(f"{count} {suffix}" for suffix, count in layout.others.most_common(5))
    seen = f": {shown(seen)}" if seen else ""
    return (
        f"no images below this folder ({layout.skipped} other files){seen}; image files "
        f"end in {known}, or have no suffix"
    )
