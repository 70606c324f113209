"""Recommend the last model of a compression plan, or the model before it."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ssdistill.report.tables.columns import FIRST, MEASURES, protocol_words
from ssdistill.report.tables.models import ResultRow, results_rows
from ssdistill.report.tables.steps import PREFIX

PARENT = "parent"
"""Key of a compressed model's record: ``model``, the name of the one that its step was given, and
``paired``, tests of its answers against that one's (see ``evaluate.paired.Paired``)."""
SEVERAL = ("probe/linear/map", "probe/knn/map")
"""Accuracies for several labels per image."""
LARGER = 1.01
"""Bytes over the parent's from which on a file counts as larger; metadata alone may differ."""
LOWER_CKA = 0.01
"""Fall of CKA that counts where one seed says nothing of its spread."""


@dataclass(frozen=True)
class Advice:
    """A compressed model against its parent, as measured.

    Attributes:
        losses: what speaks against the model: it is slower, larger or less accurate, each beyond
            what noise explains.
        notes: what else a reader must know.
        gains: what it has for it.
    """

    model: str
    parent: str
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    gains: tuple[str, ...] = ()

    @property
    def preferred(self) -> str:
        """The model to use, unless a gain matters more."""
        return self.parent if self.losses else self.model

    def __str__(self) -> str:
        sentence = f"{self.model} {' and '.join((*self.losses, *self.notes))}"
        if not self.losses:
            return sentence
        unless = f", unless {' and '.join(self.gains)} matters more" if self.gains else ""
        return f"{sentence}: prefer {self.parent}{unless}"


def advise(records: Sequence[dict[str, Any]]) -> list[Advice]:
    """Objections to the last model of each plan; models without any are omitted.

    Args:
        records: one per model and seed. Those of compressed models have a :data:`PARENT`;
            records without one, as older versions wrote them, give no advice.
    """
    parents = {r["model"]: r[PARENT]["model"] for r in records if r.get(PARENT)}
    rows = {row.model: row for row in results_rows(records)}
    judged = [
        _advice_on(rows[model], rows[parent], _paired(records, model))
        for model, parent in parents.items()
        if model not in parents.values() and parent in rows
    ]
    return [advice for advice in judged if advice.losses or advice.notes]


def _advice_on(row: ResultRow, parent: ResultRow, tests: dict[str, list[dict[str, Any]]]) -> Advice:
    if row.mean(f"{PREFIX}accepted") == 0:
        return Advice(row.model, parent.model)  # the step was skipped
    accuracy = _less_accurate(row, parent, tests)
    less_similar = _similarity_loss(row, parent)
    # Labels decide where there are any: training may move away from the uncompressed model.
    labeled = bool(tests) or _measure(row, parent) is not None
    losses = (_slower(row, parent), _larger(row, parent), accuracy, "" if labeled else less_similar)
    return Advice(
        row.model,
        parent.model,
        tuple(filter(None, losses)),
        tuple(filter(None, (less_similar if labeled else "",))),
        tuple(filter(None, _gains(row))),
    )


def _slower(row: ResultRow, parent: ResultRow) -> str:
    """Slowdown by interleaved timing if available, else beyond the spread of separate timings."""
    speedup = row.mean(f"{PREFIX}speedup")
    if speedup is not None:
        spread = row.spread(f"{PREFIX}speedup") or 0.0
        high = max(row.mean(f"{PREFIX}speedup_high") or speedup, speedup + spread)
        if high >= 1:
            return ""
        slower = 1 / speedup
    else:
        own, other = row.mean("compress/latency_ms"), parent.mean("compress/latency_ms")
        if own is None or other is None:
            return ""
        if own - other <= max(_scatter(row, own), _scatter(parent, other)):
            return ""
        slower = own / other
    low = row.mean(f"{PREFIX}speedup_batch64_low") or 0.0
    many = row.mean(f"{PREFIX}speedup_batch64")
    batch = f"; {_times(many)} faster at batch 64" if many and low > 1 else ""
    return f"is {_times(slower)} slower than {parent.model} here (batch 1, 1 thread{batch})"


def _scatter(row: ResultRow, median: float) -> float:
    """Between the median and the 90 % quantile of a latency, or over seeds if that is more."""
    high = row.mean("compress/latency_p90_ms")
    return max(row.spread("compress/latency_ms") or 0.0, (high or median) - median)


def _larger(row: ResultRow, parent: ResultRow) -> str:
    ratio = _bytes_ratio(row, parent)
    return f"is {_times(ratio)} larger than {parent.model}" if ratio and ratio > LARGER else ""


def _bytes_ratio(row: ResultRow, parent: ResultRow) -> float | None:
    after = row.mean(f"{PREFIX}bytes") or row.mean("compress/bytes")
    before = row.mean(f"{PREFIX}bytes_before") or parent.mean("compress/bytes")
    return after / before if after and before else None


def _less_accurate(
    row: ResultRow, parent: ResultRow, tests: dict[str, list[dict[str, Any]]]
) -> str:
    """Loss of accuracy by the 95 % interval of a paired test, else beyond both spreads."""
    for protocol in sorted(tests, key=_order):
        low = statistics.fmean(test["low"] for test in tests[protocol])
        high = statistics.fmean(test["high"] for test in tests[protocol])
        points = -statistics.fmean(test["difference"] for test in tests[protocol])
        if high >= 0:
            return ""
        interval = f"95 % interval {-high:.2f} to {-low:.2f}"
        return _lost(points, protocol, parent.model, interval)
    metric = _measure(row, parent)
    before, after = (r.mean(metric) if metric else None for r in (parent, row))
    if metric is None or before is None or after is None:
        return ""
    points = before - after
    doubt = (parent.spread(metric) or 0.0) + (row.spread(metric) or 0.0)
    if points <= doubt or not doubt:
        return ""
    _, protocol, measure = metric.split("/")
    return _lost(points, protocol, parent.model, f"both spreads: {doubt:.2f}", measure)


def _lost(points: float, protocol: str, parent: str, interval: str, measure: str = "top1") -> str:
    words = f"{protocol_words(protocol)} {MEASURES[measure].removesuffix(' (%)')}"
    return f"loses {points:.2f} points of {words} against {parent} ({interval})"


def _measure(row: ResultRow, parent: ResultRow) -> str | None:
    """The first accuracy that both have; for several labels per image, mean average precision."""
    probes = [m for m in row.values if m.startswith("probe/") and m in parent.values]
    shared = [metric for metric in probes if metric.endswith("/top1")]
    shared = shared or [m for m in probes if m in SEVERAL]
    return min(shared, key=lambda metric: _order(metric.split("/")[1]), default=None)


def _similarity_loss(row: ResultRow, parent: ResultRow) -> str:
    before, after = (row.values.get(f"{PREFIX}cka{end}", {}) for end in ("_before", ""))
    falls = [before[seed] - after[seed] for seed in before if seed in after]
    if not falls:
        return ""
    fall = statistics.fmean(falls)
    doubt = max(LOWER_CKA, statistics.stdev(falls)) if len(falls) > 1 else LOWER_CKA
    if fall <= doubt:
        return ""
    values = (statistics.fmean(before.values()), statistics.fmean(after.values()))
    return (
        f"agrees less with the uncompressed model than {parent.model} "
        f"(CKA {values[1]:.3f} after {values[0]:.3f})"
    )


def _gains(row: ResultRow) -> Iterable[str]:
    smaller, fast = row.mean(f"{PREFIX}smaller"), row.mean(f"{PREFIX}speedup_low")
    yield f"a {_times(smaller)} smaller file" if smaller and smaller > 1.05 else ""
    speedup = row.mean(f"{PREFIX}speedup")
    yield f"{_times(speedup)} the speed" if speedup and fast and fast > 1 else ""


def _paired(records: Sequence[dict[str, Any]], model: str) -> dict[str, list[dict[str, Any]]]:
    """Tests against the parent by protocol, one per seed."""
    tests: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["model"] == model:
            for test in (record.get(PARENT) or {}).get("paired", ()):
                tests.setdefault(test["protocol"], []).append(test)
    return tests


def _order(protocol: str) -> int:
    return FIRST.index(protocol) if protocol in FIRST else len(FIRST)


def _times(ratio: float) -> str:
    """``1.8x``; ``1.04x`` and ``12x`` with digits that say something."""
    return f"{ratio:.{2 if ratio < 1.095 else 1 if ratio < 9.95 else 0}f}x"
