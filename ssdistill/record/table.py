"""A table, shown in a terminal, in Markdown and in HTML."""

from dataclasses import dataclass
from html import escape

from rich.text import Text

from ssdistill.fitted_table import FittedTable


@dataclass(frozen=True)
class Table:
    """Cells as text, ready to show.

    Attributes:
        header: one name per column; rows: as many cells each.
        caption: one paragraph under the table: n, spread, hardware, versions, profile.
        title: shown above it, where there is room for one.
        numeric: which columns are aligned to the right; all but the first unless given.
        lead: headings of the columns that are shown first where not all fit beside each other.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    title: str = ""
    numeric: tuple[bool, ...] = ()
    lead: tuple[str, ...] = ()

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
        shown = FittedTable(title=self.title, caption=self.caption, lead=self.lead)
        for i, name in enumerate(self.header):
            shown.add_column(name, justify="right" if self.is_numeric(i) else "left")
        for row in self.rows:
            shown.add_row(*map(Text, row))
        return shown

    def to_html(self) -> str:
        """A ``<figure>`` whose table scrolls sideways where the page is narrow."""

        kinds = [' class="num"' if self.is_numeric(i) else "" for i in range(len(self.header))]
        head = "".join(
            f'<th scope="col"{kind}>{escape(name)}</th>'
            for name, kind in zip(self.header, kinds, strict=True)
        )
        body = "".join(
            f'<tr><th scope="row"{kinds[0]}>{_breakable(row[0])}</th>'
            + "".join(
                f"<td{kind}>{escape(cell)}</td>"
                for cell, kind in zip(row[1:], kinds[1:], strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        label = escape(self.title or "Results", quote=True)
        # A scrolling box must be reachable by keyboard.
        return (
            f'<figure class="table"><div class="scroll" tabindex="0" role="region" '
            f'aria-label="{label}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
            f"</table></div>{caption}</figure>"
        )


def _breakable(text: str) -> str:
    """Metric names may break after a slash on a narrow page."""
    return escape(text).replace("/", "/<wbr>")
