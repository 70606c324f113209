"""Parquet files of encoded images, read by row group, with a cache of recent groups."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssdistill.data.bad_image import BadImage
from ssdistill.data.parquet_rows import column_texts, parquet_library
from ssdistill.data.table_file import checked, encoded, file_state, report_damage
from ssdistill.data.table_split import Shard
from ssdistill.errors import UserError, one_line, shown

LARGEST_GROUP = 1 << 31
"""Maximum size of the images of one row group, in bytes."""
CACHE_BYTES = 1 << 29
"""Maximum size of cached row groups; the latest is always cached."""
ROWS = 64
"""Rows to decompress between two checks of their size."""


class GroupCache:
    """Cache of the most recent row groups of all tables of a source."""

    def __init__(self, max_bytes: int = CACHE_BYTES):
        self.max_bytes, self.lock = max_bytes, threading.Lock()
        self._groups: OrderedDict[tuple[str, int], list[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, int], load: Any) -> list[Any]:
        """Return the images of a group; one thread loads it while others wait."""
        with self.lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            group = load()
            self._groups[key] = group
            self._bytes += _size(group)
            while self._bytes > self.max_bytes and len(self._groups) > 1:
                _, oldest = self._groups.popitem(last=False)
                self._bytes -= _size(oldest)
            return group


def _size(group: list[Any]) -> int:
    return sum(part.nbytes for part in group)


class ParquetShard(Shard):
    """One Parquet file.

    Args:
        path: of the file.
        name: prefix of the names of its images.
        cache: of row groups, shared by the files of a source.

    Raises:
        UserError: from the constructor, if the file is damaged.
    """

    def __init__(self, path: Path, name: str, cache: GroupCache):
        self.path, self.name, self._cache = path, name, cache
        self._parquet = parquet_library(f"data.path={shown(path)}")
        self.state = file_state(path)
        with report_damage(path), self._parquet.ParquetFile(path) as table:
            self._metadata, self.schema = table.metadata, checked(table.schema_arrow)
        self._ends, total, size = [], 0, path.stat().st_size
        for group in range(self._metadata.num_row_groups):
            rows = self._metadata.row_group(group).num_rows
            total += rows
            self._ends.append(total)
            # Every image takes more than a byte, so more rows cannot be true.
            if rows < 0 or total > size:
                raise UserError(
                    f"data.path={shown(path)} declares {total} rows in {size} bytes, too few for "
                    "as many images; write it again"
                )

    def use(self, images: str) -> None:
        """Read images from this column."""
        self._images = images

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, row: int) -> bytes:
        group = bisect_right(self._ends, row)
        parts = self._cache.get((str(self.path), group), lambda: self._group(group))
        at = row - (self._ends[group - 1] if group else 0)
        for part in parts:
            if at < len(part):
                return encoded(part[at])
            at -= len(part)
        raise BadImage("its row group has fewer rows than declared; write the file again")

    def texts(self, column: str) -> Iterator[str]:
        with report_damage(self.path), self._open() as table:
            for batch in table.iter_batches(1024, columns=[column]):
                yield from column_texts(batch.column(0), column, f"data.path={shown(self.path)}")

    def _open(self) -> Any:
        return self._parquet.ParquetFile(self.path, metadata=self._metadata)

    def _group(self, group: int) -> list[Any]:
        """Load the images of a row group.

        Raises:
            BadImage: the group is damaged, or larger than ``LARGEST_GROUP``.
        """
        parts, total = [], 0
        try:
            with self._open() as table:
                batches = table.iter_batches(ROWS, row_groups=[group], columns=[self._images])
                for batch in batches:
                    parts.append(batch.column(0))
                    total += batch.nbytes
                    if total > LARGEST_GROUP:
                        raise BadImage(
                            f"a row group of more than {LARGEST_GROUP / 1e9:.1f} GB; write "
                            "smaller row groups"
                        )
        except BadImage:
            raise
        except Exception as error:
            # Errors of the system have an errno; those of pyarrow for damage have none.
            if getattr(error, "errno", None):
                raise
            raise BadImage(f"damaged row group ({one_line(error)})") from error
        return parts
