"""Rank correlation of label-free metrics with probe accuracies."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, cast

from ssdistill.report.tables.models import ResultRow, Table, results_rows

LABEL_FREE = (
    "collapse/effective_rank",
    "collapse/lidar",
    "collapse/std",
    "collapse/alignment",
    "collapse/uniformity",
)
PROBES = ("probe/linear/top1", "probe/knn/top1", "probe/linear/map", "probe/knn/map")
UNTRAINED = ("pixels", "untrained")
ENOUGH = 4
"""Fewer models than this have too few orders to tell one from chance."""


def kendall_tau(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Kendall's tau-b: 1 where two lists order everything alike, -1 where they do it reversed.

    NaN where one of them does not order at all.
    """
    from scipy.stats import kendalltau

    return float(cast("Any", kendalltau(xs, ys)).statistic)


def rankings_table(records: Sequence[dict[str, Any]]) -> Table | None:
    """Rank correlation of each label-free metric with each probe over the models, by seed means.

    None where nothing was pretrained for comparison, or there are fewer than ``ENOUGH`` models.
    """
    if any("agree/cka" in record.get("metrics", {}) for record in records):
        return None
    rows = [row for row in results_rows(records) if row.model not in UNTRAINED and row.seeds]
    metrics = [g for g in LABEL_FREE if all(row.mean(g) is not None for row in rows)]
    probes = [p for p in PROBES if all(row.mean(p) is not None for row in rows)]
    if len(rows) < ENOUGH or not metrics or not probes:
        return None
    header = ("metric", *(f"tau with {probe}" for probe in probes))
    body = tuple((m, *(_compared(rows, m, probe) for probe in probes)) for m in metrics)
    caption = (
        f"Kendall's tau over {len(rows)} models, means over seeds: +1 where the metric orders them "
        "as the probe does, 0 by chance, -1 in reverse. For alignment and uniformity, smaller is "
        "better. In brackets: of the pairs of models whose probe accuracies differ by more than "
        "both spreads, those that the metric orders as the probe does."
    )
    return Table(header, body, caption, "Label-free metrics vs. probes")


def _compared(rows: Sequence[ResultRow], metric: str, probe: str) -> str:
    values, probed = [_mean(row, metric) for row in rows], [_mean(row, probe) for row in rows]
    apart = [
        (a, b)
        for a, b in combinations(rows, 2)
        if _gap(a, b, probe) > _combined_spread(a, b, probe)
    ]
    concordant = sum(
        (_mean(a, metric) - _mean(b, metric)) * (_mean(a, probe) - _mean(b, probe)) > 0
        for a, b in apart
    )
    return f"{kendall_tau(values, probed):+.2f} ({concordant} of {len(apart)})"


def _mean(row: ResultRow, metric: str) -> float:
    return cast("float", row.mean(metric))  # what is compared, all rows have


def _gap(a: ResultRow, b: ResultRow, metric: str) -> float:
    return abs(_mean(a, metric) - _mean(b, metric))


def _combined_spread(a: ResultRow, b: ResultRow, metric: str) -> float:
    return (a.spread(metric) or 0.0) + (b.spread(metric) or 0.0)
