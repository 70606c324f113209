"""A split of encoded images in one container, read by row."""

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.deep_pixels import PNG
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.labels import class_labels
from ssdistill.data.splitmix import number_hashes


class Records(Protocol):
    """A container of encoded images.

    Attributes:
        identity: changes whenever the container does; cheap to compute.
    """

    @property
    def identity(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes:
        """Return an image; BadImage if it is damaged, OSError if the system fails."""
        ...

    def name(self, row: int) -> str: ...


class RecordSplit(EncodedSplit):
    """Images of a container; only their rows are kept in memory, unless all are used.

    Args:
        row_M: (M,) rows of the images; None for all.
        labels: returns (N,) labels of all images of the container; None for unlabeled images.
    """

    def __init__(
        self,
        title: str,
        records: Records,
        row_M: np.ndarray | None = None,
        labels: Callable[[], np.ndarray] | None = None,
    ):
        super().__init__()
        self.title, self._records, self._row_M, self._labels = title, records, row_M, labels

    def __len__(self) -> int:
        return len(self._records) if self._row_M is None else len(self._row_M)

    def _row(self, i: int) -> int:
        return int(i) if self._row_M is None else int(self._row_M[i])

    def read(self, i: int) -> bytes:
        data = self._records.read(self._row(i))
        if reason := wrapper_problem(data):
            raise BadImage(reason)
        return data

    def name(self, i: int) -> str:
        return self._records.name(self._row(i))

    def identity(self) -> str:
        part = b"" if self._row_M is None else self._row_M.tobytes()
        return hashlib.sha256(self._records.identity.encode() + b"\0" + part).hexdigest()

    def stamps(self) -> np.ndarray:
        """Return hashes of row and container, which all change if the container does."""
        row_M = np.arange(len(self)) if self._row_M is None else self._row_M
        key = hashlib.blake2b(self._records.identity.encode(), digest_size=8).digest()
        return number_hashes(row_M, int.from_bytes(key, "little"))

    def labels(self) -> np.ndarray:
        if self._labels is None:
            return super().labels()
        labels_N = class_labels(self._labels(), f"{self.title}: its labels", len(self._records))
        return labels_N if self._row_M is None else labels_N[self._row_M]


def wrapper_problem(data: bytes) -> str | None:
    """Return an error for values in a format that wraps images; None for all others.

    Except for PNG, no image format begins like a pickle, or like a list or map of msgpack.
    """
    if data.startswith(PNG):
        return None
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, which is never unpickled; store encoded images"
    if data[:1] in (b"(", b"c") and data[-1:] == b".":
        return "a pickle, which is never unpickled; store encoded images"
    if data and (0x80 <= data[0] <= 0x9F or 0xDC <= data[0] <= 0xDF):
        return "msgpack, not an image; store encoded images"
    return None
