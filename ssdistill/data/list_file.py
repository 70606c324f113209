"""Read rows of a list of images: plain text with one path per line, CSV, TSV or Parquet."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.data.list_columns import (
    HEADLESS,
    Columns,
    Wanted,
    columns_of_classes,
    find_columns,
    has_header,
)
from ssdistill.data.parquet_rows import parquet_columns, parquet_rows
from ssdistill.data.several_labels import BETWEEN
from ssdistill.errors import UserError, one_line, shown, system_reason

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks and their encodings; of two with a common prefix, the longer comes first."""
NUMBERED = re.compile(r"(.*\.\w{2,5})(?:\s*[,;]\s*|\s+)(\d+)")
"""A path and a class number, as in the lists of many data sets."""
SAMPLE = 100
"""Lines from which the format of a text file is inferred."""
LONGEST_LINE = 1 << 20
Row = tuple[str, ...]


class ListFile:
    """A list of images; every query reads the file again.

    Args:
        path: of the file.
        requested: names of columns by role, see :mod:`ssdistill.data.list_columns`.
        encoding: of a text file; None means its byte order mark decides, by default UTF-8.
        classes: names or patterns of columns of 0 and 1, one for each class; None means none.

    Attributes:
        columns: the columns that were found.
        class_columns: the columns that match ``classes``; None without ``classes``.

    Raises:
        UserError: from the constructor, if the file cannot be read or a column is missing.
    """

    def __init__(
        self,
        path: Path,
        requested: dict[str, str | None],
        encoding: str | None,
        classes: Wanted = None,
    ):
        self.path, self.encoding = path, encoding
        self._parquet = path.suffix.lower() in (".parquet", ".pq")
        with self._errors_named():
            if self._parquet:
                self._header = True
                names = parquet_columns(path)
                self.columns = find_columns(names, requested, self.title)
            else:
                self._delimiter = self._find_delimiter()
                first = next(self._cells(), None)
                if first is None:
                    raise UserError(f"{self.title}: the list is empty; write one path per line")
                self._header = has_header(first, requested)
                if self._header:
                    self.columns = find_columns(first, requested, self.title)
                else:
                    self.columns = self._headless(first, requested)
                names = [name.strip() for name in first] if self._header else []
            self.class_columns = self._find_class_columns(names, classes)

    @property
    def labeled(self) -> bool:
        """Whether there is a column of labels, or one for each class."""
        return self.class_columns is not None or "label" in self.columns

    @property
    def title(self) -> str:
        return f"data.path={shown(self.path)}"

    @property
    def delimited(self) -> bool:
        """Whether the list has delimited columns, not just lines."""
        return self._parquet or self._delimiter is not None

    def labels(self) -> Iterator[Row]:
        """Yield the label of every row, or the values of all class columns.

        A list of labels becomes one text, see :func:`ssdistill.data.several_labels.joined`.
        """
        names = self.class_columns or (self.columns.name.get("label", ""),)
        if self.class_columns is None:
            return self._rows([self.columns.position["label"]], names)
        return self._rows([self._position[name] for name in names], names)

    def rows(self, *roles: str) -> Iterator[Row]:
        """Yield the values of the given roles for every row, as stripped text.

        Several values of one image, from a column of lists, are joined by ``BETWEEN``.

        Raises:
            UserError: a row is too short, or cannot be read.
        """
        positions = [self.columns.position[role] for role in roles]
        names = [self.columns.name.get(role, "") for role in roles]
        for row in self._rows(positions, names):
            yield tuple(text.removeprefix(BETWEEN) for text in row)

    def _rows(self, positions: Sequence[int], names: Sequence[str]) -> Iterator[Row]:
        with self._errors_named():
            if self._parquet:
                yield from parquet_rows(self.path, names)
                return
            for number, cells in enumerate(self._cells(), start=1):
                if number == 1 and self._header:
                    continue
                if len(cells) <= max(positions):
                    raise UserError(
                        f"{self.title}: entry {number} has only {len(cells)} of "
                        f"{max(positions) + 1} columns ({shown(' '.join(cells))[:60]}); correct it"
                    )
                yield tuple(cells[at].strip() for at in positions)

    def path_of(self, row: int) -> str:
        """Return the path in a row, counted from 0; reads the list up to that row."""
        return next(islice(self.rows("path"), row, None))[0]

    def _find_class_columns(self, names: Sequence[str], classes: Wanted) -> tuple[str, ...] | None:
        if classes is None:
            return None
        taken = self.columns.position.values()
        free = [name for at, name in enumerate(names) if at not in taken]
        self._position = {name: at for at, name in enumerate(names) if at not in taken}
        return columns_of_classes(free, classes, self.title)

    def _headless(self, first: Sequence[str], requested: dict[str, str | None]) -> Columns:
        named = next((name for name in requested.values() if name not in (None, "none")), None)
        if named is not None or len(first) > len(HEADLESS):
            problem = f"no column '{shown(named)}'" if named else f"{len(first)} columns"
            raise UserError(
                f"{self.title}: {problem}, but the first line is not a header "
                f"({shown(', '.join(first))[:80]}); add a header such as path,label"
            )
        used = [role for role in HEADLESS[: len(first)] if requested.get(role) != "none"]
        return Columns({role: HEADLESS.index(role) for role in used}, {})

    def _find_delimiter(self) -> str | None:
        """Return the delimiter of columns; None if lines hold a path, optionally with a number."""
        with self._text() as file:
            sample = list(islice(_contents(file), SAMPLE))
        if self.path.suffix.lower() == ".tsv":
            return "\t"
        if self.path.suffix.lower() == ".csv":
            return next((mark for mark in ",;\t" if sample and mark in sample[0]), ",")
        self._numbered = bool(sample) and all(NUMBERED.fullmatch(line) for line in sample)
        return "\t" if sample and all("\t" in line for line in sample) else None

    def _cells(self) -> Iterator[list[str]]:
        """Yield the cells of each row, skipping empty rows and comments."""
        with self._text() as file:
            if self._delimiter is None:
                for line in _contents(file):
                    match = NUMBERED.fullmatch(line) if self._numbered else None
                    yield list(match.groups()) if match else [line]
                return
            for cells in csv.reader(file, delimiter=self._delimiter, skipinitialspace=True):
                if any(cells) and not cells[0].startswith("#"):
                    yield cells

    @contextmanager
    def _text(self) -> Iterator[IO[str]]:
        with open_regular(self.path) as binary:
            head = binary.read(4)
            binary.seek(0)
            mark = next((name for bom, name in MARKS.items() if head.startswith(bom)), None)
            # File names may contain arbitrary bytes.
            errors = "strict" if self.encoding or mark else "surrogateescape"
            encoding = self.encoding or mark or "utf-8"
            # In CSV, keep line ends inside quotes.
            newline = None if getattr(self, "_delimiter", None) is None else ""
            with io.TextIOWrapper(binary, encoding, errors, newline) as file:
                yield file

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turn errors within the context into UserErrors that name the list."""
        try:
            yield
        except UserError:
            raise
        except BadImage as error:
            raise UserError(f"{self.title}: {error.reason}; pass a list of images") from error
        except LookupError as error:
            raise UserError(
                f"data.encoding={self.encoding}: {one_line(error)}; set utf-8, cp1252 or another"
            ) from error
        except UnicodeError as error:
            raise UserError(
                f"{self.title} is not encoded as {self.encoding or 'its byte order mark declares'} "
                f"({one_line(error)}); set data.encoding, such as utf-8 or cp1252"
            ) from error
        except (OSError, csv.Error) as error:
            raise UserError(
                f"{self.title}: {system_reason(error)}; pass a readable list of images"
            ) from error


def _contents(file: IO[str]) -> Iterator[str]:
    """Yield stripped lines, skipping empty lines and comments."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line of more than {LONGEST_LINE} characters")
        if (line := line.strip()) and not line.startswith("#"):
            yield line
