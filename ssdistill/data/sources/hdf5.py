"""Encoded images or arrays in an HDF5 file, read by row."""

from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ssdistill.data.array_names import Names, find_names
from ssdistill.data.array_rows import ArrayRows
from ssdistill.data.hdf5_file import EncodedRows, Hdf5File, OffsetRows, is_encoded
from ssdistill.data.layouts import Layout, arrangement
from ssdistill.data.parts import PartedSource
from ssdistill.data.record_split import Records, RecordSplit
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError
from ssdistill.files import user_path

OFFSETS = ("offsets", "offset", "starts")


class Hdf5(PartedSource):
    """Images in datasets of an HDF5 file.

    Images are a dataset of encoded images (variable-length uint8), a dataset of all their bytes
    with another of offsets, or an array (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W). Unless
    keys are set, they are found by their usual names, such as ``train_images``, ``x_train`` or
    ``images``. Without test images, some are held out by a hash of their number. Requires
    ``pip install 'ssdistill[hdf5]'``.

    Args:
        path: the file.
        image_key: dataset of the images, such as ``train/images``.
        label_key: dataset of their labels, (N,) whole numbers from 0.
        test_image_key: dataset of the test images.
        test_label_key: dataset of their labels.
        offset_key: dataset of the offset of each image, if ``image_key`` holds all bytes.
        test_offset_key: the same for the test images.
        layout: axes of arrays; ``auto`` infers them from the shape.
        test_fraction: fraction to hold out without test images; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "hdf5"

    def __init__(
        self,
        *,
        path: str,
        image_key: str | None = None,
        label_key: str | None = None,
        test_image_key: str | None = None,
        test_label_key: str | None = None,
        offset_key: str | None = None,
        test_offset_key: str | None = None,
        layout: Layout = "auto",
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ):
        self.path, self.test_fraction = path, test_fraction
        self.layout: Layout = layout
        self.image_key, self.label_key, self.offset_key = image_key, label_key, offset_key
        self.test_image_key, self.test_label_key = test_image_key, test_label_key
        self.test_offset_key = test_offset_key

    @cached_property
    def _file(self) -> Hdf5File:
        return Hdf5File(user_path(self.path), f"data.path={self.path}")

    @cached_property
    def _names(self) -> Names:
        keys = (self.image_key, self.label_key, self.test_image_key, self.test_label_key)
        plain = Names(*(key and key.strip("/") for key in keys))
        return find_names(self._file.keys(), plain, self._file.where)

    def _images(self, name: str) -> tuple[str, str | None]:
        """Return the keys of a split's images and of their offsets."""
        test = name == "test" and self._has_test_images
        key = self._names.test_images if test else self._names.images
        assert key is not None
        offsets = self.test_offset_key if test else self.offset_key
        if offsets is None and self._file.dataset(key).ndim == 1:
            beside = key.rpartition("/")[0]
            usual = [f"{beside}/{name}" if beside else name for name in OFFSETS]
            usual += [f"{key}_offsets", f"{key}_offset"]
            keys = self._file.keys()
            offsets = next((name for name in usual if name in keys), None)
        return key, offsets

    @cached_property
    def _records(self) -> dict[str, Records | None]:
        """The container of encoded images of each split; None for arrays."""
        records: dict[str, Records | None] = {}
        for name in ("train", "test") if self._has_test_images else ("train",):
            key, offsets = self._images(name)
            dataset = self._file.dataset(key)
            if dataset.ndim == 1 and dataset.dtype == np.uint8:
                if offsets is None:
                    raise UserError(
                        f"{self._file.where}: '{key}' is one array of bytes; set data.offset_key "
                        "to the dataset of the offset of each image"
                    )
                records[name] = OffsetRows(self._file, key, offsets)
            else:
                records[name] = EncodedRows(self._file, key) if is_encoded(dataset) else None
        return records

    def _total(self) -> int:
        records = self._records["train"]
        return len(self._file.dataset(self._images("train")[0]) if records is None else records)

    @property
    def _has_test_images(self) -> bool:
        return bool(self._names.test_images)

    @property
    def has_labels(self) -> bool:
        return self._names.labeled

    @property
    def default_image_size(self) -> int:
        if self._records["train"] is not None:
            return 64
        return min(self._arranged(self._images("train")[0]).sides)

    def _arranged(self, key: str) -> Any:
        dataset = self._file.dataset(key)
        name = f"{self._file.where}: '{key}'"
        return arrangement(
            dataset.shape, dataset.dtype, self.layout, name, any_bands=self.any_bands
        )

    @property
    def description(self) -> str:
        return f"{Path(self.path).name} ({self._names}), {'' if self.has_labels else 'un'}labeled"

    def _split(self, name: str) -> RawSplit:
        row_M = self._rows(name)
        test = name == "test" and self._has_test_images
        title, file = f"{self.path} ({name})", self._file
        label_key = self._names.test_labels if test else self._names.labels
        labels = partial(file.read, label_key) if label_key else None
        records = self._records["test" if test else "train"]
        if records is not None:
            return RecordSplit(title, records, row_M, labels)
        key, _ = self._images(name)
        rows = partial(file.dataset, key)
        count, arranged = len(rows()), self._arranged(key)
        return ArrayRows(title, file.identity(key), rows, count, arranged, row_M, labels)
