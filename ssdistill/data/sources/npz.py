"""Arrays of images in an ``.npz`` file, whose shapes and checksums are read without loading."""

from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ssdistill.data.array_file import EXAMPLE, NpzFile
from ssdistill.data.array_names import MOST_NAMED, Names, find_names
from ssdistill.data.array_rows import ArrayRows
from ssdistill.data.labels import class_labels
from ssdistill.data.layouts import Arrangement, Layout, arrangement
from ssdistill.data.parts import PartedSource
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path

MEDMNIST_NAMES = {"train": "train_images", "test": "test_images"}


class Npz(PartedSource):
    """Arrays in an ``.npz`` file, named as in MedMNIST or in another usual way.

    ``train_images`` and ``test_images`` are (N, H, W), (N, H, W, 3) or (N, 3, H, W): uint8, floats
    in [0, 1], or other real numbers (see ``data.window``). ``train_labels`` and ``test_labels``,
    (N,) or (N, 1), and ``class_names`` are optional. Other usual names are found, too: ``x_train``
    and ``y_train``, ``images`` and ``labels``, ``data``, ``X``, ``arr_0``, …. Without test images,
    some are held out by a hash of their number. Other arrays, such as MedMNIST's ``val_images``,
    are ignored. By default images are stored at the size of the training images;
    ``data.image_size`` sets another.

    Args:
        path: the file.
        layout: axes of the images; ``auto`` infers them from the shape.
        image_key: name of the array of images, if it is unusual.
        label_key: name of their labels.
        test_image_key: name of the test images.
        test_label_key: name of their labels.
        test_fraction: fraction to hold out without test images; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "npz"
    later = (
        "layout",
        "image_key",
        "label_key",
        "test_image_key",
        "test_label_key",
        "test_fraction",
    )

    def __init__(
        self,
        *,
        path: str,
        layout: Layout = "auto",
        image_key: str | None = None,
        label_key: str | None = None,
        test_image_key: str | None = None,
        test_label_key: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ):
        self.path, self.test_fraction = path, test_fraction
        self.layout: Layout = layout
        self.image_key, self.label_key = image_key, label_key
        self.test_image_key, self.test_label_key = test_image_key, test_label_key

    @cached_property
    def _file(self) -> NpzFile:
        return NpzFile(user_path(self.path))

    @cached_property
    def _names(self) -> Names:
        requested = Names(self.image_key, self.label_key, self.test_image_key, self.test_label_key)
        names = find_names(
            self._file.keys, requested, f"data.path={self.path}", f"save with {EXAMPLE}"
        )
        shapes = {key: self._arranged(key) for key in (names.images, names.test_images) if key}
        assert names.images is not None
        if names.test_images:
            types = [self._file.header(key)[1] for key in shapes]
            if len({dtype.newbyteorder("=") for dtype in types}) > 1:
                raise UserError(
                    f"data.path={self.path}: '{names.images}' is {types[0]}, but "
                    f"'{names.test_images}' is {types[1]}; save both with the same type"
                )
        return names

    def _arranged(self, key: str) -> Arrangement:
        return arrangement(
            *self._file.header(key),
            self.layout,
            f"data.path={self.path}: '{key}'",
            certain=key in MEDMNIST_NAMES.values(),
            any_bands=self.any_bands,
        )

    def _count(self, key: str | None) -> int:
        return self._file.header(key)[0][0] if key else 0

    def _total(self) -> int:
        return self._count(self._names.images)

    @property
    def _has_test_images(self) -> bool:
        return bool(self._names.test_images)

    @property
    def has_labels(self) -> bool:
        return self._names.labeled

    @property
    def default_image_size(self) -> int:
        assert self._names.images is not None
        return min(self._arranged(self._names.images).sides)

    @property
    def description(self) -> str:
        names = self._names
        usual = (names.images, names.test_images) == tuple(MEDMNIST_NAMES.values())
        arrays = "" if usual else f" ({names})"
        return f"{Path(self.path).name}{arrays}, {'labeled' if self.has_labels else 'unlabeled'}"

    def warnings(self, labels: bool) -> tuple[str, ...]:
        """Warn about ignored arrays of images."""
        ignored = []
        for key in self._file.keys:
            used = key in (self._names.images, self._names.test_images)
            if key.endswith("_images") and not used:
                shape, _ = self._file.header(key)
                ignored.append(f"{shown(key)} ({shape[0] if shape else 0} images)")
        if not ignored:
            return ()
        more = f" and {len(ignored) - MOST_NAMED} more" if len(ignored) > MOST_NAMED else ""
        named = ", ".join(ignored[:MOST_NAMED]) + more
        read = " and ".join(key for key in (self._names.images, self._names.test_images) if key)
        return (
            f"data.path={self.path}: ignoring {named}, since only {shown(read)} are read; append "
            "them to train_images to train on them",
        )

    def _split(self, name: str) -> RawSplit:
        names, file, row_M = self._names, self._file, self._rows(name)
        images, labels = names.images, names.labels
        if name == "test" and names.test_images:
            images, labels = names.test_images, names.test_labels
        assert images is not None
        title, identity = f"{self.path} ({name})", file.checksum(images)
        count, arranged = self._count(images), self._arranged(images)
        load = partial(file.load, images)
        read = classes = None
        if labels is not None:
            where = f"data.path={self.path}: '{labels}'"
            read = partial(_labels, file, labels, where, count)
            classes = partial(_class_names, file) if "class_names" in file.keys else None
        return ArrayRows(title, identity, load, count, arranged, row_M, read, classes)


def _labels(file: NpzFile, key: str, where: str, count: int) -> np.ndarray:
    return class_labels(file.load(key), where, count)


def _class_names(file: NpzFile) -> list[str]:
    names = file.load("class_names")
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise UserError(
            f"data.path={file.path}: 'class_names' must be one string per class, but is "
            f"{names.dtype} of shape {' x '.join(map(str, names.shape)) or '()'}; save a list of "
            "strings, or remove it"
        )
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
