"""Write embeddings as comma-separated values."""

from collections.abc import Sequence
from pathlib import Path

from ssdistill.label_free.embedding.parts import Part, all_names
from ssdistill.label_free.embedding.row_file import Rows

LINES = 256
"""Lines that are put into words at a time."""


def write_csv(path: Path, rows: Rows, parts: Sequence[Part], facts: dict[str, str]) -> None:
    """Write a line for each image: ``name``, ``split`` and its numbers ``0``, ``1``, ….

    Numbers have as many digits as it takes to read the same ones again.
    """
    at = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        # The module csv would leave a carriage return in a name unquoted in Python 3.11, which then
        # ends a line.
        file.write(",".join(["name", "split", *map(str, range(rows.shape[1]))]) + "\n")
        for split, names in all_names(parts):
            for start in range(0, len(names), LINES):
                some = names[start : start + LINES]
                # str() of a numpy number is the shortest text that is read as this number.
                text_BD = rows[at : at + len(some)].astype(str)
                file.writelines(
                    ",".join([_quoted(name), split, *text_D]) + "\n"
                    for name, text_D in zip(some, text_BD, strict=True)
                )
                at += len(some)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if {*name} & {*',"\r\n'} or not name else name
