"""Write embeddings as comma-separated values."""

import csv
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
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "split", *range(rows.shape[1])])
        for split, names in all_names(parts):
            for start in range(0, len(names), LINES):
                some = names[start : start + LINES]
                # str() of a numpy number is the shortest text that is read as this number.
                text_BD = rows[at : at + len(some)].astype(str)
                writer.writerows(
                    [name, split, *text_D] for name, text_D in zip(some, text_BD, strict=True)
                )
                at += len(some)
