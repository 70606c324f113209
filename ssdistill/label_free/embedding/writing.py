"""Embed images into a file that an interrupted command goes on with, exactly.

::

    images ──batches──> FILE.partial/rows ──neighbors──> FILE.partial/*.npy ──> FILE

Rows are the same whether a pass was interrupted or not: it goes on at the beginning of a batch.
"""

import math
import os
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.progress import with_bar
from ssdistill.errors import UserError
from ssdistill.files import disk_errors
from ssdistill.label_free.embedding.batches import Encoding, encoded
from ssdistill.label_free.embedding.embedded import Embedded
from ssdistill.label_free.embedding.formats import Format, format_of, names_file, neighbors_file
from ssdistill.label_free.embedding.names_file import write_names
from ssdistill.label_free.embedding.neighbors import check_topk, nearest_rows, neighbor_files
from ssdistill.label_free.embedding.npz_file import write_arrays
from ssdistill.label_free.embedding.partial import NAMES, NEAR, ROWS, WHOLE, Partial, opened_partial
from ssdistill.label_free.embedding.parts import Part
from ssdistill.label_free.embedding.row_file import RowFile

SECONDS = 2.0
"""Between two states that are saved: what a kill can lose."""


def write_embeddings(
    encoder: Any,
    parts: Sequence[Part],
    file: Path,
    encoding: Encoding,
    key: dict[str, Any],
    *,
    topk: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Embedded:
    """Embed all images into a file.

    Args:
        encoder: anything that maps float BCHW images in [0, 1] to a Representation.
        parts: the images, in the order of their rows.
        file: its ending names the format.
        encoding: how images become rows.
        key: what else the rows depend on; ``model`` is the sha256 of the weights, or None.
        topk: also write this many nearest neighbors of each row.
        force: replace files that exist, and begin again where another command was interrupted.
        progress: bars on the terminal.

    Raises:
        UserError: an unknown ending, a file that exists, an interrupted command that differs, a
            full disk, or images or output that cannot be written.
    """
    kind = format_of(file, encoding.layer)
    check_topk(topk, encoding.layer, sum(map(len, parts)))
    beside = names_file(file) if kind.has_names_file else None
    near = neighbors_file(file) if topk else None
    outputs = [path for path in (file, beside, near) if path is not None]
    key = key | _key(parts, encoding, topk)
    with opened_partial(file, key, outputs, force) as partial:
        writing = _Writing(partial, kind, encoding, file, _facts(key, beside))
        writing.encode(encoder, parts, progress)
        if near is not None and topk is not None:
            writing.find_neighbors(topk, progress)
        with disk_errors(file.parent):
            shape = writing.finish(parts, beside, near)
    return Embedded(file, shape, encoding.dtype, beside, near, tuple(parts))


def _key(parts: Sequence[Part], encoding: Encoding, topk: int | None) -> dict[str, Any]:
    return {
        **{f"images of {part.split}": part.fingerprint for part in parts},
        "layer": encoding.layer,
        "normalize": encoding.normalize,
        "half": encoding.half,
        "batch_size": encoding.batch_size,
        "device": encoding.device.type,
        "precision": encoding.precision,
        "image_size": encoding.image_size,
        "topk": topk,
    }


def _facts(key: dict[str, Any], beside: Path | None) -> dict[str, str]:
    """Return what a file says of itself, where its format has a place for it."""
    facts = {name: str(key[name]) for name in ("layer", "normalize")}
    facts |= {"model": key["model"]} if key["model"] else {}
    return facts | ({"names": beside.name} if beside else {})


class _Writing:
    """The steps of one file."""

    def __init__(
        self,
        partial: Partial,
        kind: Format,
        encoding: Encoding,
        file: Path,
        facts: dict[str, str],
    ):
        self.partial, self.kind, self.encoding, self.file = partial, kind, encoding, file
        self.facts, self.header = facts, kind.header(facts)
        self._reached: tuple[dict[str, int], int] | None = None
        if partial.rows and not self._rows_path.exists():
            partial.begin()  # the finished file was moved away, and is to be written again

    @property
    def _done(self) -> dict[str, int]:
        """Images of each split whose rows were appended, whether or not that is saved yet."""
        return self._reached[0] if self._reached else self.partial.done

    @property
    def _rows_path(self) -> Path:
        return self.partial.folder / ROWS

    def _open_rows(self, shape: tuple[int, ...]) -> RowFile:
        rows = self.partial.rows
        return RowFile(self._rows_path, shape, self.encoding.dtype, self.header, rows)

    def encode(self, encoder: Any, parts: Sequence[Part], progress: bool) -> None:
        """Write the rows that are not written yet."""
        for split, failed in self.partial.skipped().items():
            for part in parts:
                if part.split == split:
                    part.failed.update(failed)
        rows: RowFile | None = None
        saved = time.monotonic()
        total, done = sum(map(len, parts)), sum(self.partial.done.values())
        batches = self._batches(encoder, parts)
        try:
            for batch, part, at in with_bar(batches, total, "embedding", done, progress):
                rows = rows or self._first(batch, total)
                if batch.shape[1:] != rows.shape:
                    raise UserError(
                        f"{self.encoding.name} gave rows of shape {batch.shape[1:]} after some of "
                        f"{rows.shape}; all must have one shape"
                    )
                with disk_errors(self.file.parent):
                    rows.append(self._decoded(batch, part, at))
                    # In one step: Ctrl-C may come between any two.
                    done_now = {**self._done, part.split: at + len(batch)}
                    self._reached = done_now, rows.rows
                    if time.monotonic() - saved > SECONDS:
                        self._save(rows)
                        saved = time.monotonic()
        except BaseException:
            # Ctrl-C loses nothing; whatever else went wrong is what must be said.
            with suppress(Exception):
                self._save(rows)
            raise
        else:
            with disk_errors(self.file.parent):
                self._save(rows)
        finally:
            batches.close()
            if rows is not None:
                rows.close()

    def _batches(
        self, encoder: Any, parts: Sequence[Part]
    ) -> Generator[tuple[np.ndarray, Part, int], None, None]:
        for part in parts:
            start = self.partial.done.get(part.split, 0)
            if start < len(part):
                for batch, at in encoded(encoder, part, self.encoding, start):
                    yield batch, part, at

    def _first(self, batch: np.ndarray, total: int) -> RowFile:
        shape = batch.shape[1:]
        if self.partial.shape not in (None, shape):
            raise UserError(
                f"{self.file}: was begun with rows of {self.partial.shape}, now they are {shape}; "
                f"begin again with --force (delete {self.partial.folder})"
            )
        rows = self._open_rows(shape)
        self.partial.shape = shape
        self._check_space(rows, total - self.partial.rows)
        return rows

    def _check_space(self, rows: RowFile, missing: int) -> None:
        numbers = math.prod(rows.shape)
        copy = (missing + rows.rows) * numbers * self.kind.bytes_per_number
        required = missing * rows.row_bytes + copy
        free = shutil.disk_usage(self.file.parent).free
        if required > free:
            size = " x ".join(map(str, rows.shape))
            less = "" if self.encoding.half else ", write float16 with --half"
            raise UserError(
                f"{self.file}: {missing} rows of {size} numbers take {required / 1e6:,.1f} MB, but "
                f"only {free / 1e6:,.1f} MB are free in {self.file.parent}; free some{less}, or "
                "name a file on another disk"
            )

    def _decoded(self, batch: np.ndarray, part: Part, at: int) -> np.ndarray:
        """Return the rows of the images that could be decoded; note the others."""
        if not part.failed:
            return batch
        row_B = part.rows(at, at + len(batch)).tolist()
        kept_B = np.array([row not in part.failed for row in row_B])
        for b in np.flatnonzero(~kept_B).tolist():
            self.partial.skip(part.split, row_B[b], at + b, part.failed[row_B[b]])
        return batch[kept_B]

    def _save(self, rows: RowFile | None) -> None:
        if rows is None or self._reached is None:
            return
        rows.sync()
        self.partial.done, self.partial.rows = self._reached
        self.partial.save()

    def find_neighbors(self, topk: int, progress: bool) -> None:
        """Write indices and similarities of the nearest rows that are not written yet."""
        partial = self.partial
        assert partial.shape is not None
        check_topk(topk, "embedding", partial.rows)  # fewer, if some could not be decoded
        rows = self._open_rows(partial.shape)
        rows.close()
        rows_ND = rows.map()
        paths = neighbor_files(partial.folder)
        start = partial.neighbors if all(path.exists() for path in paths.values()) else 0
        types = {"indices": np.dtype(np.int64), "similarities": np.dtype(np.float32)}
        files = [RowFile(paths[n], (topk,), types[n], rows=start) for n in paths]
        chunks = nearest_rows(rows_ND, topk, start, self.encoding.device)
        saved = time.monotonic()
        try:
            for found in with_bar(chunks, len(rows_ND), "neighbors", start, progress):
                with disk_errors(self.file.parent):
                    for file, block in zip(files, found, strict=True):
                        file.append(block)
                    if time.monotonic() - saved > SECONDS:
                        self._save_neighbors(files)
                        saved = time.monotonic()
            with disk_errors(self.file.parent):
                for file in files:
                    file.finish()
                self._save_neighbors(files)
        finally:
            for file in files:
                file.close()

    def _save_neighbors(self, files: Sequence[RowFile]) -> None:
        for file in files:
            file.sync()
        self.partial.neighbors = files[0].rows
        self.partial.save()

    def finish(
        self, parts: Sequence[Part], beside: Path | None, near: Path | None
    ) -> tuple[int, ...]:
        """Put the files in their places, the one that was requested last; return its shape."""
        folder, shape = self.partial.folder, self.partial.shape
        assert shape is not None
        moves: list[tuple[Path, Path]] = []
        if near is not None:
            found = {
                name: np.load(path, mmap_mode="r") for name, path in neighbor_files(folder).items()
            }
            write_arrays(folder / NEAR, found)
            moves.append((folder / NEAR, near))
        if self.kind.write is None:
            assert beside is not None
            write_names(folder / NAMES, parts)
            moves.append((folder / NAMES, beside))
            rows = self._open_rows(shape)
            rows.finish()
            rows.close()
            moves.append((self._rows_path, self.file))
        else:
            rows = self._open_rows(shape)
            rows.close()
            self.kind.write(folder / WHOLE, rows.reader(), parts, self.facts)
            moves.append((folder / WHOLE, self.file))
        self.partial.finishing = True
        self.partial.save()
        for source, target in moves:
            _sync(source)
            os.replace(source, target)
        return (self.partial.rows, *shape)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
