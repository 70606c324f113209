"""Results of every protocol for the same models."""

from collections.abc import Sequence
from typing import Any

from ssdistill.report.tables.columns import (
    FIRST,
    MEASURES,
    PROBE,
    Column,
    protocol_words,
    shown_measures,
)
from ssdistill.report.tables.models import MISSING, ResultRow, cell, origins, results_rows
from ssdistill.report.tables.table import Table

SECONDS = "time/probe/"


def protocols_table(records: Sequence[dict[str, Any]]) -> Table | None:
    """One row per protocol and measure, one column per model.

    None where every protocol has a column in the table of results.
    """
    shown = shown_measures(records)
    rows = [row for row in results_rows(records) if row.seeds]
    if not rows or all(protocol in FIRST for protocol, _ in shown):
        return None
    # A file for a runtime cannot be trained further: times are those of who answered most.
    timed = max(reversed(rows), key=lambda row: sum(_seconds(row, p) != MISSING for p, _ in shown))
    header = ("protocol", "measure", *(row.model for row in rows), "seconds")
    body = tuple(
        (
            protocol_words(protocol),
            MEASURES[measure],
            *(cell(row, Column(f"{PROBE}{protocol}/{measure}", "")) for row in rows),
            _seconds(timed, protocol),
        )
        for protocol, measure in shown
    )
    parts = [
        "Mean over seeds ± standard deviation; with one seed ± is the standard error where the "
        "protocol gives one",
        f"seconds: of the protocol for the model '{timed.model}', without the encoding of "
        "images that protocols share",
        *origins(records),
    ]
    return Table(header, body, "; ".join(parts) + ".", "Evaluation protocols", keys=2)


def _seconds(row: ResultRow, protocol: str) -> str:
    seconds = row.mean(f"{SECONDS}{protocol}")
    return MISSING if seconds is None else f"{seconds:.1f}"
