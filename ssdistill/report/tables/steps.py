"""Effect of each compression step on its input model."""

from collections.abc import Sequence
from typing import Any

from ssdistill.report.tables.models import MISSING, ResultRow, Table, results_rows, scaled

PREFIX = "step/"
"""Metrics of a step in the record of the model that it made."""
COUNTED = (("params", "count"), ("macs", "count"), ("bytes", "bytes"))
NO_BREAK = "\N{NO-BREAK SPACE}"
HEADER = (
    "model",
    "parameters",
    "MACs",
    "size",
    "smaller",
    "batch 1 (ms)",
    "speed-up",
    "speed-up, batch 64",
    "CKA with the uncompressed model",
    "cosine",
    "cosine, worst 1 %",
    "k-NN overlap",
)
LEAD = ("size", "smaller", "batch 1 (ms)", "speed-up")
"""What to see first in a narrow terminal."""


def steps_table(records: Sequence[dict[str, Any]]) -> Table | None:
    """Before and after each step, means over seeds; None where nothing was compressed."""
    rows = [row for row in results_rows(records) if row.mean(f"{PREFIX}bytes") is not None]
    if not rows:
        return None
    caption = (
        "Each model after the model its step started from (before → after). Both run in the same "
        "runtime (that of the file if the step wrote one, else ONNX Runtime) and are timed in "
        "turns on one thread; means over seeds, in brackets the 95 % interval over the first "
        "seed's rounds. CKA (debiased), centered cosine and k-NN overlap compare embeddings of "
        "unlabeled training images with those of the uncompressed model."
    )
    if any(row.mean(f"{PREFIX}accepted") == 0 for row in rows):
        caption += " A model marked * is the one before the step, which its gate skipped."
    body = tuple(_cells(row) for row in rows)
    return Table(HEADER, body, caption, "Compression steps", lead=LEAD)


def _cells(row: ResultRow) -> tuple[str, ...]:
    skipped = row.mean(f"{PREFIX}accepted") == 0
    counted = tuple(_change(row, name, scale) for name, scale in COUNTED)
    return (
        f"{row.model}{NO_BREAK + '*' if skipped else ''}",
        *counted,
        _number(row, "smaller", "{:.2f}×"),
        _milliseconds(row),
        _speedup(row, ""),
        _speedup(row, "_batch64"),
        *(_agreement(row, name) for name in ("cka", "cosine", "cosine_p01", "knn_overlap")),
    )


def _change(row: ResultRow, name: str, scale: str) -> str:
    before, after = row.mean(f"{PREFIX}{name}_before"), row.mean(f"{PREFIX}{name}")
    if before is None or after is None:
        return MISSING
    written = [scaled(value, scale) for value in (before, after)]
    return written[1] if before == after else " → ".join(written)


def _agreement(row: ResultRow, name: str) -> str:
    before, after = (row.mean(f"{PREFIX}{name}{end}") for end in ("_before", ""))
    if before is None or after is None:
        return MISSING
    # A model that is still uncompressed agrees with itself.
    return f"{after:.3f}" if before > 1 - 1e-6 else f"{before:.3f} → {after:.3f}"


def _milliseconds(row: ResultRow) -> str:
    before, after = (row.mean(f"{PREFIX}latency_ms{end}") for end in ("_before", ""))
    return MISSING if before is None or after is None else f"{before:.3f} → {after:.3f}"


def _speedup(row: ResultRow, size: str) -> str:
    speedup = row.mean(f"{PREFIX}speedup{size}")
    if speedup is None:
        return MISSING
    low, high = (_first(row, f"{PREFIX}speedup{size}_{end}") for end in ("low", "high"))
    return f"{speedup:.2f}× ({low:.2f}–{high:.2f})"


def _first(row: ResultRow, metric: str) -> float:
    return next(iter(row.values[metric].values()))


def _number(row: ResultRow, name: str, text: str) -> str:
    value = row.mean(f"{PREFIX}{name}")
    return MISSING if value is None else text.format(value)
