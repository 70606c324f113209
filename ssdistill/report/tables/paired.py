"""Paired comparison of models on the same test images, as a table."""

import statistics
from collections.abc import Sequence
from typing import Any

from ssdistill.report.tables.columns import FIRST, protocol_words
from ssdistill.report.tables.table import Table

PAIRED = "paired"
"""Key of a record: a list of paired tests, each with its ``reference`` and ``protocol``."""


def paired_table(records: Sequence[dict[str, Any]]) -> Table | None:
    """Every model against the last of its references, over seeds; None without any.

    Of several protocols the first by :data:`ssdistill.report.tables.columns.FIRST` is shown.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        tests = record.get(PAIRED, [])
        last = {t["protocol"]: t for t in tests if t["reference"] == tests[-1]["reference"]}
        for protocol in [name for name in (*FIRST, *last) if name in last][:1]:
            test = last[protocol]
            key = (record["model"], test["reference"], protocol)
            groups.setdefault(key, []).append(test)
    if not groups:
        return None
    margin = next(iter(groups.values()))[0]["margin"]
    header = ("model", "against", "protocol", "difference", "McNemar p", "verdict")
    body = tuple(
        (model, reference, protocol_words(protocol), *_cells(tests))
        for (model, reference, protocol), tests in groups.items()
    )
    caption = (
        "Difference: accuracy of the model minus that of the one it is compared with, on the same "
        "test images, in percentage points; mean over seeds, in brackets the lowest and highest "
        "end of the seeds' 95 % intervals. p: exact McNemar test, the largest over seeds. Verdict "
        f"of a seed: equivalent if its 90 % interval lies within ± {margin:g} points; otherwise "
        "better or worse if p < 0.05; otherwise undecided. If seeds disagree, the number of seeds "
        "with each verdict is given."
    )
    return Table(header, body, caption, "Paired comparison")


def _cells(tests: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    mean = statistics.fmean(test["difference"] for test in tests)
    low, high = min(test["low"] for test in tests), max(test["high"] for test in tests)
    largest = max(test["p_value"] for test in tests)
    counts = {v: sum(t["verdict"] == v for t in tests) for v in {t["verdict"] for t in tests}}
    verdicts = sorted(counts, key=counts.__getitem__, reverse=True)
    verdict = (
        verdicts[0] if len(verdicts) == 1 else ", ".join(f"{v} ({counts[v]})" for v in verdicts)
    )
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", p_value_text(largest), verdict


def p_value_text(p_value: float) -> str:
    """``0.042``, or ``< 0.001`` of all that are smaller."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
