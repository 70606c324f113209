"""A table, shown in a terminal, in Markdown and on a page.

By hand: pandas leaves ``|`` in a Markdown cell, which then is two cells, writes HTML without
``scope``, cannot split a wide table, and costs 89 MiB and a second of start-up (with tabulate).
"""

from dataclasses import dataclass

from rich.text import Text

from ssdistill.report.charts.lettering import text_width
from ssdistill.terminal.fitted_table import FittedTable

PAGE = 1180
"""Pixels that a page has for a table, in a window that is wide enough."""
CELL, HEAD, PADDING = 14.7, 13.2, 11
"""Sizes of text in cells and headings, and pixels on either side of a cell: those of page.css."""
PROSE = 17
"""Letters of a line of prose at least."""


@dataclass(frozen=True)
class Table:
    """Cells as text, ready to show.

    Attributes:
        header: one name per column; rows: as many cells each.
        caption: one paragraph under the table: n, spread, hardware, versions, profile.
        title: shown above it, where there is room for one.
        numeric: which columns are aligned to the right; all but the first unless given.
        lead: headings of the columns that are shown first where not all fit beside each other.
        keys: how many of the first columns name a row, and are repeated then.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    title: str = ""
    numeric: tuple[bool, ...] = ()
    lead: tuple[str, ...] = ()
    keys: int = 1

    def is_numeric(self, column: int) -> bool:
        return self.numeric[column] if self.numeric else column > 0

    def to_markdown(self) -> str:
        """GitHub Markdown, the caption in a paragraph below."""
        aligned = ["---:" if self.is_numeric(i) else ":---" for i in range(len(self.header))]
        lines = [self.header, tuple(aligned), *self.rows]
        text = "\n".join(
            "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines
        )
        return text + (f"\n\n{self.caption}" if self.caption else "")

    def to_rich(self) -> FittedTable:
        """For a terminal of any width."""
        shown = FittedTable(title=self.title, caption=self.caption, lead=self.lead, keys=self.keys)
        for i, name in enumerate(self.header):
            shown.add_column(name, justify="right" if self.is_numeric(i) else "left")
        for row in self.rows:
            shown.add_row(*map(Text, row))
        return shown

    def pieces(self, width: float = PAGE) -> list[tuple[int, ...]]:
        """Columns that stand beside each other in ``width`` pixels of a page, each with the keys.

        One piece where all fit; otherwise those of ``lead`` come first.
        """
        sizes = [self._pixels(i) for i in range(len(self.header))]
        names, others = range(self.keys), range(self.keys, len(self.header))
        if sum(sizes) <= width:
            return [(*names, *others)]
        first = [i for name in self.lead for i in others if self.header[i] == name]
        pieces: list[list[int]] = []
        for i in [*first, *(i for i in others if i not in first)]:
            if pieces and sum(sizes[k] for k in (*pieces[-1], i)) <= width:
                pieces[-1].append(i)
            else:
                pieces.append([*names, i])
        return [tuple(piece) for piece in pieces]

    def _pixels(self, column: int) -> float:
        """Width of a column on a page: numbers in one line, headings and prose between words."""
        cells = [row[column] for row in self.rows]
        if column and not self.is_numeric(column):
            cells = [*(word for cell in cells for word in cell.split()), "x" * PROSE]
        head = max((text_width(word, HEAD) for word in self.header[column].split()), default=0)
        return 2 * PADDING + max(head, *(text_width(cell, CELL) for cell in cells), 0)
