"""Pictures in one ``.npz`` file: shapes and checksums are read without unpacking it."""

import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np

from ssdistill.data.splits import SPLITS, ArraySplit, RawSplit, Source
from ssdistill.errors import UserError


class NpzFile:
    """A ``.npz`` file whose arrays are named as in MedMNIST (``train_images`` and so on).

    Raises:
        UserError: from the constructor, when the file is missing or no ``.npz``.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "not an .npz file"
            raise UserError(f"data.path={path}: {reason}") from error
        self._members = {m.filename.removesuffix(".npy"): m for m in members}

    @property
    def keys(self) -> list[str]:
        return list(self._members)

    def require(self, *keys: str) -> None:
        """Raises UserError for the first key that is not in the file."""
        for key in keys:
            if key not in self._members:
                raise UserError(
                    f"data.path={self.path} has no array '{key}'; it has {', '.join(self.keys)}"
                )

    def checksum(self, key: str) -> str:
        """Of the array's bytes, as the zip directory has it."""
        member = self._members[key]
        return f"{member.CRC:08x}-{member.file_size}"

    def header(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array."""
        self.require(key)
        with zipfile.ZipFile(self.path) as archive, archive.open(self._members[key]) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        return shape, dtype

    def load(self, key: str) -> np.ndarray:
        """The whole array; raises UserError for one of Python objects or damaged bytes."""
        self.require(key)
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[key]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"data.path={self.path}: cannot read '{key}' ({reason})") from error

    def check_images(self, key: str) -> None:
        """Raises UserError unless the array is uint8 of (N, H, W) or (N, H, W, 3)."""
        shape, dtype = self.header(key)
        grey, colour = len(shape) == 3, len(shape) == 4 and shape[3] == 3
        if dtype != np.uint8 or not (grey or colour) or 0 in shape:
            raise UserError(
                f"data.path={self.path}: '{key}' must be uint8 of N x H x W or N x H x W x 3, "
                f"it is {dtype} of {' x '.join(map(str, shape))}"
            )

    def load_labels(self, key: str, count: int) -> np.ndarray:
        """(N,) integers; a column (N, 1) is flattened.

        Raises:
            UserError: another shape, another count than ``count``, or not whole numbers from 0.
        """
        labels = self.load(key)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        whole = labels.dtype.kind in "iu" and labels.ndim == 1
        if not whole or len(labels) != count or labels.min() < 0:
            raise UserError(
                f"data.path={self.path}: '{key}' must be one whole number from 0 for each of the "
                f"{count} images, it is {labels.dtype} of {' x '.join(map(str, labels.shape))}"
            )
        return labels


class Npz(Source):
    """Arrays in one ``.npz`` file, named as in MedMNIST.

    ``train_images`` and ``test_images`` (N, H, W) or (N, H, W, 3) uint8; optionally
    ``train_labels`` and ``test_labels`` (N,) or (N, 1), and ``class_names``. Other arrays, such
    as MedMNIST's ``val_images``, are ignored. The size of a stored picture is that of the
    train images, unless ``data.image_size`` says otherwise.

    Args:
        path: the file.
    """

    kind = "npz"

    def __init__(self, *, path: str):
        self.path = path

    @cached_property
    def _file(self) -> NpzFile:
        file = NpzFile(Path(self.path))
        for name in SPLITS:
            file.check_images(f"{name}_images")
        return file

    @property
    def has_labels(self) -> bool:
        return {"train_labels", "test_labels"} <= set(self._file.keys)

    @property
    def default_image_size(self) -> int:
        return min(self._file.header("train_images")[0][1:3])

    @property
    def description(self) -> str:
        return f"{Path(self.path).name}, {'labeled' if self.has_labels else 'unlabeled'}"

    def _split(self, name: str) -> RawSplit:
        file, images, labels = self._file, f"{name}_images", f"{name}_labels"
        title, identity = f"{self.path} ({name})", file.checksum(images)
        if labels not in file.keys:
            return ArraySplit(title, identity, lambda: file.load(images))
        count = file.header(images)[0][0]
        named = "class_names" in file.keys
        return ArraySplit(
            title,
            identity,
            lambda: file.load(images),
            lambda: file.load_labels(labels, count),
            (lambda: file.load("class_names")) if named else None,
        )
