"""A table for terminals of any width: no number is cut, and no column gets lost.

By hand on top of rich, whose own tables cut numbers at 80 columns, and whose wrapping breaks paths
and no-break spaces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.table import Table
from rich.text import Text

ROOM = 16
"""Columns that prose gets before it is wrapped closer, where there is a choice."""


class FittedTable(Table):
    """A rich table that lays itself out for the width it is printed at.

    Numbers and names stay in one piece; headings and prose are wrapped between words. Where not
    all columns fit beside each other, those of ``lead`` come first and the others follow as
    further tables, each beginning with the columns that name the rows. Where that leaves next to
    nothing in a line, every row becomes a list of ``heading: value``.

    Args:
        headers: as for rich's table: columns of text.
        lead: headings of the columns to show first where not all fit; all in order by default.
        keys: how many of the first columns name a row.
    """

    def __init__(self, *headers: str, lead: Sequence[str] = (), keys: int = 1, **options: Any):
        super().__init__(*headers, **options)
        self.lead, self.keys = tuple(lead), keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        width = options.max_width
        columns = [_Column.of(column) for column in self.columns]
        parts = _parts(columns, self.keys, self.lead, width) if columns else []
        if self.title:
            yield _line(wrapped(str(self.title), width), "bold")
        if len(parts) > 1 + len(columns) // 3 or (columns and not parts):
            yield from _listed(columns, self.keys, width)
        else:
            for number, part in enumerate(parts):
                if number:
                    yield Text("")
                yield self._part(part, width)
        if self.caption:
            yield _line(wrapped(str(self.caption), width), "dim")
        yield Text("")

    def _part(self, columns: "Sequence[_Column]", width: int) -> Table:
        shown = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            show_lines=self.show_lines,
        )
        for column, columns_wide in zip(columns, _widths(columns, width), strict=True):
            header = Text("\n".join(_words(column.header, columns_wide)))
            shown.add_column(header, justify=column.justify, width=columns_wide, overflow="fold")
        wraps = [column.wraps for column in columns]
        for row in zip(*(column.cells for column in columns), strict=True):
            shown.add_row(*(Text(cell, no_wrap=not w) for cell, w in zip(row, wraps, strict=True)))
        return shown


@dataclass(frozen=True)
class _Column:
    """A column and the widths it can have.

    Attributes:
        least: columns below which a word or a number would break.
        most: columns from which on nothing is wrapped.
    """

    header: str
    cells: tuple[str, ...]
    justify: JustifyMethod
    wraps: bool
    least: int
    most: int

    @classmethod
    def of(cls, column: Any) -> "_Column":
        header, cells = str(column.header), tuple(str(cell) for cell in column.cells)
        wraps = column.justify == "left" and not column.no_wrap
        longest = max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)
        word = max((_longest_word(cell) for cell in cells), default=0) if wraps else longest
        least = max(word, _longest_word(header), 1)
        return cls(header, cells, column.justify, wraps, least, max(longest, cell_len(header), 1))

    @property
    def comfortable(self) -> int:
        return max(self.least, min(self.most, ROOM)) if self.wraps else self.least


def _parts(
    columns: Sequence[_Column], keys: int, lead: Sequence[str], width: int
) -> list[tuple[_Column, ...]]:
    """Columns of each table, each with those that name rows; none where these leave no room."""
    for size in ("comfortable", "least"):
        if _total([getattr(column, size) for column in columns]) <= width:
            return [tuple(columns)]
    names, others = columns[:keys], columns[keys:]
    first = [c for name in lead for c in others if c.header == name]
    parts: list[list[_Column]] = []
    for column in [*first, *(c for c in others if c.header not in lead)]:
        if parts and _total([c.comfortable for c in (*parts[-1], column)]) <= width:
            parts[-1].append(column)
            continue
        if _total([c.least for c in (*names, column)]) > width:
            return []
        parts.append([*names, column])
    return [tuple(part) for part in parts]


def _total(widths: Sequence[int]) -> int:
    """Columns of a table: rich puts one blank after each column and one between two."""
    return sum(widths) + 2 * len(widths) - 1


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Widths that use the room there is: who is furthest from its natural width gets it."""
    widths = [column.least for column in columns]
    natural = [column.most for column in columns]
    if _total(natural) <= width:
        return natural
    for _ in range(width - _total(widths)):
        most_lines = max(range(len(widths)), key=lambda i: natural[i] / widths[i])
        if natural[most_lines] <= widths[most_lines]:
            break
        widths[most_lines] += 1
    return widths


def _listed(columns: Sequence[_Column], keys: int, width: int) -> Iterator[Text]:
    """Every row below its name, one cell after the other."""
    for number, names in enumerate(zip(*(c.cells for c in columns[:keys]), strict=True)):
        if number:
            yield Text("")
        yield _line(wrapped(" ".join(filter(None, names)), width), "bold")
        for column in columns[keys:]:
            lines = _item(column, number, max(width - 4, 1))
            yield _line("\n".join([f"  {lines[0]}", *(f"    {line}" for line in lines[1:])]))


def _item(column: _Column, row: int, width: int) -> list[str]:
    """``heading: value``; a number that has no room beside its heading gets a line below it."""
    value = " ".join(column.cells[row].split())
    whole = f"{column.header}: {value}"
    if column.wraps or cell_len(whole) <= width:
        return _words(whole, width)
    return [*_words(f"{column.header}:", width), *_words(value, width)]


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def wrapped(text: str, width: int) -> str:
    """Lines of whole words, at most ``width`` columns each unless a word is wider."""
    return "\n".join(line for part in text.split("\n") for line in _words(part, width))


def _words(text: str, width: int) -> list[str]:
    """Lines of whole words; a word that is wider than a line has one of its own."""
    lines, length = [""], 0
    for word in text.split(" "):
        size = cell_len(word)
        if length and length + 1 + size > width:
            lines.append(word)
            length = size
        else:
            lines[-1] += f" {word}" if length else word
            length += size + (1 if length else 0)
    return lines


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)
