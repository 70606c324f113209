"""Encoded images in an LMDB database."""

from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ssdistill.data.array_file import map_array
from ssdistill.data.bad_image import BadImage
from ssdistill.data.labels import class_labels
from ssdistill.data.lmdb_file import LmdbFile, LmdbRows, listed_keys
from ssdistill.data.parts import PartedSource
from ssdistill.data.record_split import RecordSplit, wrapper_problem
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path


class Lmdb(PartedSource):
    """Encoded images in an LMDB database, one per key.

    Values are encoded images; pickles and msgpack are not supported, since nothing is unpickled.
    Test images come from another database, or are held out by a hash of their number. Requires
    ``pip install 'ssdistill[lmdb]'``.

    Args:
        path: the file, or the folder with ``data.mdb``.
        test_path: the database of the test images.
        image_key: pattern of the keys, such as ``%08d`` or ``image-%09d``, numbered from 0 or 1;
            by default all keys in order, except metadata such as ``length``.
        key_list: text file of the keys to read, one per line, instead of ``image_key``.
        label_path: ``.npy`` file of labels (N,) in the order of the images, whole numbers from 0.
        test_label_path: the same for the test images.
        test_fraction: fraction to hold out without ``test_path``; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "lmdb"
    default_image_size = 64

    def __init__(
        self,
        *,
        path: str,
        test_path: str | None = None,
        image_key: str | None = None,
        key_list: str | None = None,
        label_path: str | None = None,
        test_label_path: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ):
        self.path, self.test_path, self.test_fraction = path, test_path, test_fraction
        self.image_key, self.key_list = image_key, key_list
        self.label_path, self.test_label_path = label_path, test_label_path

    @cached_property
    def _train(self) -> LmdbRows:
        if self.image_key is not None and self.key_list is not None:
            raise UserError(
                f"data.image_key={shown(self.image_key)} and data.key_list={shown(self.key_list)} "
                "are both set; set only one of them"
            )
        return self._open("path")

    @cached_property
    def _test(self) -> LmdbRows:
        return self._open("test_path")

    def _open(self, setting: str) -> LmdbRows:
        where = f"data.{setting}={shown(getattr(self, setting))}"
        file = LmdbFile(user_path(getattr(self, setting)), where)
        if self.key_list is not None and setting == "path":
            keys = listed_keys(user_path(self.key_list), f"data.key_list={shown(self.key_list)}")
        elif self.image_key is not None:
            keys = file.pattern(self.image_key)
        else:
            keys = file.keys()
        rows = LmdbRows(file, keys)
        if not len(rows):
            raise UserError(f"{where} has no images; set data.image_key or data.key_list")
        try:
            problem = wrapper_problem(rows.read(0))
        except BadImage as error:
            problem = f"{error.reason}; correct data.key_list"
        if problem:
            raise UserError(f"{where}: '{shown(rows.name(0))}' is {problem}")
        return rows

    def _total(self) -> int:
        return len(self._train)

    @property
    def _has_test_images(self) -> bool:
        return self.test_path is not None

    @property
    def has_labels(self) -> bool:
        return bool(self.label_path and (self.test_label_path or not self.test_path))

    @property
    def description(self) -> str:
        labeled = "labeled" if self.has_labels else "unlabeled"
        return f"{Path(self.path).name}, {len(self._train)} images, {labeled}"

    def _split(self, name: str) -> RawSplit:
        row_M = self._rows(name)
        own = name == "test" and self._has_test_images
        records, key = (self._test, "test_label_path") if own else (self._train, "label_path")
        path = self.test_path if own else self.path
        read = partial(self._labels, key, len(records)) if getattr(self, key) else None
        return RecordSplit(f"{path} ({name})", records, row_M, read)

    def _labels(self, key: str, count: int) -> np.ndarray:
        where = f"data.{key}={getattr(self, key)}"
        return class_labels(
            map_array(user_path(getattr(self, key)), where), f"{where}: labels", count
        )
