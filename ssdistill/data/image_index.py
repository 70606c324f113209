"""Index encoded images: size and hash of each, in 24 bytes, without decoding them.

Only the two ends of an image are read, once, when it is new or has changed. The index suffices to
draw crop boxes, to plan a run and to compute its fingerprint.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.channel_reader import ChannelHeader
from ssdistill.data.checksums import block_checksums
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.header import Header
from ssdistill.data.progress import with_bar
from ssdistill.data.retry import retried
from ssdistill.errors import UserError
from ssdistill.files import write_atomically

FORMAT = 1
"""Increase it whenever the records of the same images change."""
RECORD = np.dtype([("stamp", "<u8"), ("digest", "<u8"), ("height", "<u4"), ("width", "<u4")])
"""One image: its stamp (``EncodedSplit.stamps``), a hash of its bytes, and its size in pixels after
EXIF orientation. A height of 0 marks an unreadable image, the highest bit of ``width`` one of more
than 8 bits per channel."""
DEEP = np.uint32(1 << 31)
ENDS = 1 << 16
"""Bytes hashed at each end of a file; files of up to twice as many are hashed completely."""
PIECE = 4096
RECORDS, META = "records.npy", "index.json"


class ImageIndex:
    """Sizes, hashes and errors of a split's images, found without decoding them.

    Args:
        raw: the split.
        folder: of the index, which is created or updated.
        verify: read every image again, even if its stamp is unchanged.
        bands: whether images may have any number of bands, see
            :func:`ssdistill.data.channel_reader.read_channels`.

    Attributes:
        records_N: (N,) :data:`RECORD`, mapped from disk.
        reasons: for each unreadable image, by row, the reason.
        num_read: number of images read to create or update the index.
    """

    def __init__(
        self, raw: EncodedSplit, folder: Path, *, verify: bool = False, bands: bool = False
    ):
        self.folder = folder
        stamp_N = raw.stamps()
        records_N, meta = (None, {}) if verify else _read(folder)
        if records_N is not None and np.array_equal(records_N["stamp"], stamp_N):
            self.num_read = 0
        else:
            images = Described(raw, bands)
            records_N, meta, self.num_read = _updated(images, stamp_N, records_N, meta)
            _write(folder, records_N, meta)
            records_N = np.load(folder / RECORDS, mmap_mode="r")
        assert records_N is not None
        self.records_N: np.ndarray = records_N
        self.reasons: dict[int, str] = {int(row): text for row, text in meta["reasons"].items()}

    def __len__(self) -> int:
        return len(self.records_N)

    @property
    def deep_rows(self) -> list[int]:
        """Rows of the readable images with more than 8 bits a channel."""
        return np.flatnonzero(self.records_N["width"] & DEEP).tolist()

    def sizes(self, row_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return heights and widths, (B,) int64 each, in pixels after EXIF orientation."""
        records_B = self.records_N[row_B]
        height_B, width_B = records_B["height"], records_B["width"] & ~DEEP
        return height_B.astype(np.int64), width_B.astype(np.int64)

    def content(self) -> str:
        """Return the sha256 (hex) of the hashes and sizes of all images, in order."""
        digest = hashlib.sha256(f"index {FORMAT}\n".encode())
        for start in range(0, len(self), 1 << 20):
            part = self.records_N[start : start + (1 << 20)]
            columns = [part["digest"], part["height"], part["width"]]
            digest.update(b"".join(np.ascontiguousarray(column).tobytes() for column in columns))
        return digest.hexdigest()


def verified(raw: EncodedSplit, folder: Path, *, bands: bool = False) -> np.ndarray | None:
    """Read all images of an index again; return the rows whose bytes changed unnoticed.

    Their names, sizes and times are unchanged. The index is updated.

    Returns:
        (M,) int64; None if there is no index in ``folder``.
    """
    before_N, _ = _read(folder)
    if before_N is None:
        return None
    before_N = np.array(before_N)
    now_N = ImageIndex(raw, folder, verify=True, bands=bands).records_N
    order = np.argsort(before_N["stamp"], kind="stable")
    at_N = np.searchsorted(before_N["stamp"], now_N["stamp"], sorter=order)
    at_N = order[np.minimum(at_N, max(len(order) - 1, 0))] if len(order) else at_N
    former_N = before_N[at_N] if len(order) else now_N
    return np.flatnonzero((former_N["stamp"] == now_N["stamp"]) & (former_N != now_N))


def is_current(raw: EncodedSplit, folder: Path) -> bool:
    """Whether the index in ``folder`` is up to date, by their stamps; reads no image."""
    records_N, _ = _read(folder)
    return records_N is not None and np.array_equal(records_N["stamp"], raw.stamps())


def _updated(
    images: "Described", stamp_N: np.ndarray, former_N: np.ndarray | None, meta: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any], int]:
    """Return the records and metadata of images, and the number of images read for them."""
    records_N = np.zeros(len(stamp_N), RECORD)
    reasons: dict[int, str] = {}
    new_N = np.ones(len(stamp_N), dtype=bool)
    if former_N is not None and len(former_N):
        order = np.argsort(former_N["stamp"], kind="stable")
        at_N = np.searchsorted(former_N["stamp"], stamp_N, sorter=order)
        at_N = order[np.minimum(at_N, len(order) - 1)]
        new_N = former_N["stamp"][at_N] != stamp_N
        records_N[~new_N] = former_N[at_N[~new_N]]
        old = meta.get("reasons", {})
        reasons = {
            int(row): old[str(at_N[row])]
            for row in np.flatnonzero(~new_N & (records_N["height"] == 0))
        }
    records_N["stamp"] = stamp_N
    rows = np.flatnonzero(new_N)
    for row, entry in _entries(images, rows):
        if isinstance(entry, BadImage):
            reasons[row] = entry.reason
            records_N[row] = (stamp_N[row], _number(entry.reason.encode()), 0, 0)
        else:
            records_N[row] = (stamp_N[row], *entry)
    return records_N, {"format": FORMAT, "reasons": reasons}, len(rows)


def _entries(
    images: "Described", rows: np.ndarray
) -> Iterator[tuple[int, tuple[int, int, int] | BadImage]]:
    def pieces() -> Iterator[tuple[list[int], list]]:
        with AbandoningPool(os.cpu_count() or 1, "indexing") as pool:
            for start in range(0, len(rows), PIECE):
                piece = rows[start : start + PIECE].tolist()
                yield piece, pool.map(images.entry, piece)

    for piece, entries in with_bar(pieces(), len(rows), f"indexing {images.raw.title}"):
        yield from zip(piece, entries, strict=True)


class Described:
    """Images of a split, described by their headers.

    Args:
        bands: see :class:`ImageIndex`.
    """

    def __init__(self, raw: EncodedSplit, bands: bool):
        self.raw, self.bands = raw, bands

    def entry(self, row: int) -> tuple[int, int, int] | BadImage:
        """Return hash, height and width (with the flag :data:`DEEP`) of an image.

        An image without the end marker of its format is decoded, to see whether it is truncated.
        """
        try:
            name, seconds = self.raw.name(row), self.raw.reading.seconds
            digest, header = retried(self._hash_and_header, row, name, seconds)
            if header.suspicious:
                retried(self._decode, row, name, seconds)
        except BadImage as error:
            return error
        return digest, header.height, header.width | (int(DEEP) if header.deep else 0)

    def _hash_and_header(self, row: int) -> tuple[int, Header | ChannelHeader]:
        """Hash the ends of an image, and read its header."""
        with self.raw.open_original(row) if self.bands else self.raw.open(row) as file:
            head = file.read(ENDS)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(head), size - ENDS))
            tail = file.read()
            frame = self.raw.frame(row) or 0
            which = frame.to_bytes(8, "little") if frame else b""
            digest = _number(size.to_bytes(8, "little") + head + tail + which)
            return digest, self._header(row, file, (head + tail)[-ENDS:])

    def _header(self, row: int, file: IO[bytes], tail: bytes) -> Header | ChannelHeader:
        file.seek(0)
        frame = self.raw.frame(row)
        try:
            return ChannelHeader(file, tail) if self.bands else Header(file, tail, frame)
        except (BadImage, UserError):
            raise
        except Exception:  # Pillow raises all kinds of errors; decoding yields a better message
            self._decode(row)
            raise BadImage("unreadable header") from None

    def _decode(self, row: int) -> None:
        if self.bands:
            self.raw.bands(row)
        else:
            self.raw.image(row)


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _read(folder: Path) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the records and metadata of an index; (None, {}) if it is missing or damaged.

    The checksums of the records are verified: 0.25 s on one core for a gigabyte (forty million
    images).
    """
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        meta = json.loads((folder / META).read_text())
        if meta["format"] == FORMAT and meta["checksums"] == block_checksums(folder / RECORDS):
            records_N = np.load(folder / RECORDS, mmap_mode="r")
            bad = {str(row) for row in np.flatnonzero(records_N["height"] == 0)}
            if records_N.dtype == RECORD and records_N.ndim == 1 and meta["reasons"].keys() == bad:
                return records_N, meta
    return None, {}


def _write(folder: Path, records_N: np.ndarray, meta: dict[str, Any]) -> None:
    """Replace the index. Its metadata are deleted first, so no incomplete index is ever read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    unfinished = folder / f"{RECORDS}.partial"
    with open(unfinished, "wb") as file:
        np.save(file, records_N)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / RECORDS)
    meta = meta | {"checksums": block_checksums(folder / RECORDS)}
    write_atomically(folder / META, json.dumps(meta) + "\n")
