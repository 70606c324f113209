"""Arrays of images in ``.npy`` files, memory-mapped."""

import os
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ssdistill.data.array_file import map_array
from ssdistill.data.array_rows import ArrayRows
from ssdistill.data.labels import class_labels
from ssdistill.data.layouts import Arrangement, Layout, arrangement
from ssdistill.data.parts import PartedSource
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError
from ssdistill.files import user_path


class Npy(PartedSource):
    """Arrays in ``.npy`` files, one per split, memory-mapped from disk.

    Images are (N, H, W), (N, H, W, 1 or 3), (N, 1 or 3, H, W) or rows of square images: uint8,
    floats in [0, 1], or other real numbers (see ``data.window``). With ``data.channels``, any
    number of channels is allowed. Without test images, some are held out by a hash of their
    number. By default images are stored at their own size; ``data.image_size`` sets another.

    Args:
        path: the training images, or all images.
        test_path: the test images.
        label_path: labels of the images of ``path``: (N,) or (N, 1) whole numbers from 0, or
            (N, K) values 0 and 1, one for each class.
        test_label_path: labels of the test images.
        layout: axes of the images; ``auto`` infers them from the shape.
        test_fraction: fraction to hold out without test images; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "npy"

    def __init__(
        self,
        *,
        path: str,
        test_path: str | None = None,
        label_path: str | None = None,
        test_label_path: str | None = None,
        layout: Layout = "auto",
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ):
        self.path, self.test_path = path, test_path
        self.label_path, self.test_label_path = label_path, test_label_path
        self.layout: Layout = layout
        self.test_fraction = test_fraction

    def _array(self, key: str) -> np.ndarray:
        """Map an array again on each call, so that maps live no longer than their splits."""
        return map_array(user_path(getattr(self, key)), f"data.{key}={getattr(self, key)}")

    @cached_property
    def _facts(self) -> dict[str, tuple[tuple[int, ...], np.dtype, Arrangement]]:
        """Shape, type and arrangement of the images, by key."""
        facts = {}
        for key in ("path", "test_path"):
            if getattr(self, key) is not None:
                array, name = self._array(key), f"data.{key}={getattr(self, key)}"
                facts[key] = (
                    array.shape,
                    array.dtype,
                    arrangement(
                        array.shape, array.dtype, self.layout, name, any_bands=self.any_bands
                    ),
                )
        types = [dtype for _, dtype, _ in facts.values()]
        if len({dtype.newbyteorder("=") for dtype in types}) > 1:
            raise UserError(
                f"data.path={self.path} is {types[0]}, but data.test_path={self.test_path} is "
                f"{types[1]}; save both with the same type"
            )
        return facts

    def _total(self) -> int:
        return self._facts["path"][0][0]

    @property
    def _has_test_images(self) -> bool:
        return "test_path" in self._facts

    @property
    def has_labels(self) -> bool:
        return bool(self.label_path and (self.test_label_path or not self.test_path))

    @property
    def default_image_size(self) -> int:
        return min(self._facts["path"][2].sides)

    @property
    def description(self) -> str:
        shape, dtype, arranged = self._facts["path"]
        facts = f"{dtype} of {' x '.join(map(str, shape))} read as {arranged.axes}"
        return f"{Path(self.path).name} ({facts}), {'' if self.has_labels else 'un'}labeled"

    def _split(self, name: str) -> RawSplit:
        row_M = self._rows(name)
        own = name == "test" and self._has_test_images
        key, label_key = ("test_path", "test_label_path") if own else ("path", "label_path")
        shape, _, arranged = self._facts[key]
        status = os.stat(user_path(getattr(self, key)))
        read = partial(self._labels, label_key, shape[0]) if getattr(self, label_key) else None
        return ArrayRows(
            f"{getattr(self, key)} ({name})",
            f"{status.st_size} {status.st_mtime_ns}",
            partial(self._array, key),
            shape[0],
            arranged,
            row_M,
            read,
        )

    def _labels(self, key: str, count: int) -> np.ndarray:
        return class_labels(self._array(key), f"data.{key}={getattr(self, key)}: labels", count)
