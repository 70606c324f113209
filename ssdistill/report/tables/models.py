"""Results table from records: one row per model, over its seeds."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError
from ssdistill.record.provenance import describe_hardware, describe_versions
from ssdistill.report.tables.columns import COSTS_SHOWN_FIRST, PROBE, Column, columns_for
from ssdistill.report.tables.table import Table
from ssdistill.report.tables.timing import describe_timing

MISSING = "–"


@dataclass(frozen=True)
class ResultRow:
    """One model over its seeds.

    Attributes:
        values: by metric, the number of each seed that has it.
        stderr: by metric, the mean standard error of a single run, where the probe gave one.
        failed: seeds whose run failed.
    """

    model: str
    profile: str
    seeds: tuple[int, ...]
    values: dict[str, dict[int, float]]
    stderr: dict[str, float] = field(default_factory=dict)
    failed: tuple[int, ...] = ()

    def mean(self, metric: str) -> float | None:
        values = self.values.get(metric)
        return statistics.fmean(values.values()) if values else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over seeds; for one seed the standard error, or None."""
        values = self.values.get(metric, {})
        return statistics.stdev(values.values()) if len(values) > 1 else self.stderr.get(metric)


def results_rows(records: Iterable[dict[str, Any]]) -> list[ResultRow]:
    """Group records by (model, profile), in the order in which the models first appear.

    Of two records of the same model, profile and seed the later one counts. The standard error
    of metric ``m`` is read from ``m_stderr``. A record with ``status: failed`` is kept as such.
    """
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for record in records:
        key = (record["model"], record.get("profile", ""))
        groups.setdefault(key, {})[record.get("seed", 0)] = record
    return [_aggregate(model, profile, by_seed) for (model, profile), by_seed in groups.items()]


def _aggregate(model: str, profile: str, by_seed: dict[int, dict[str, Any]]) -> ResultRow:
    good = {s: r for s, r in sorted(by_seed.items()) if r.get("status", "finished") == "finished"}
    collected: dict[str, dict[int, float]] = {}
    for seed, record in good.items():
        # `metrics` may be nested (records.jsonl) or beside the identity (a plain row).
        flat = {k: v for k, v in record.items() if "/" in k} | record.get("metrics", {})
        for name, value in flat.items():
            if value is not None:
                collected.setdefault(name, {})[seed] = float(value)
    errors = {n.removesuffix("_stderr"): v for n, v in collected.items() if n.endswith("_stderr")}
    return ResultRow(
        model=model,
        profile=profile,
        seeds=tuple(good),
        values={n: v for n, v in collected.items() if not n.endswith("_stderr")},
        stderr={name: statistics.fmean(v.values()) for name, v in errors.items()},
        failed=tuple(s for s in sorted(by_seed) if s not in good),
    )


def results_table(
    records: Sequence[dict[str, Any]], title: str = "", columns: Sequence[Column] | None = None
) -> Table:
    """Mean ± spread of every model; columns without a value in any record are omitted.

    ``columns`` are those of :func:`columns_for` unless given.
    """
    rows = results_rows(records)
    columns = columns_for(records) if columns is None else columns
    columns = [c for c in columns if any(c.metric in row.values for row in rows)]
    several = len({row.profile for row in rows}) > 1
    counts = {len(row.seeds) for row in rows}
    header = ["model", *(["seeds"] if len(counts) > 1 else []), *(c.header for c in columns)]
    body = []
    for row in rows:
        label = f"{row.model} ({row.profile or 'no profile'})" if several else row.model
        seeds = [str(len(row.seeds))] if len(counts) > 1 else []
        cells = [cell(row, column) for column in columns]
        body.append((label, *seeds, *(cells if row.seeds else ["FAILED"] * len(cells))))
    return Table(
        tuple(header),
        tuple(body),
        _caption(rows, columns, records),
        title,
        lead=_leading_headers(columns),
    )


def _leading_headers(columns: Sequence[Column]) -> tuple[str, ...]:
    """Columns to show first in a narrow terminal: one accuracy and its costs."""
    probe = [column for column in columns if column.metric.startswith(PROBE)][:1]
    return tuple(c.header for c in (*probe, *(c for c in columns if c.metric in COSTS_SHOWN_FIRST)))


def cell(row: ResultRow, column: Column) -> str:
    """A model's number as a column shows it, with its spread where that is known."""
    mean, spread = row.mean(column.metric), row.spread(column.metric)
    if mean is None:
        return MISSING
    if column.scale == "times":
        low, high = (row.mean(f"{column.metric}_{end}") for end in ("low", "high"))
        interval = ""
        if low is not None and high is not None:
            interval = f" ({_times(low)} to {_times(high)})"
        return f"{_times(mean)}×{interval}"
    if column.scale != "plain":
        return scaled(mean, column.scale)
    text = f"{mean:.{column.decimals}f}"
    return text if spread is None else f"{text} ± {spread:.{column.decimals}f}"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def scaled(value: float, scale: str) -> str:
    """``11200000`` as ``11.2 M`` (count), ``44800000`` as ``44.8 MB`` (bytes, decimal)."""
    suffixes = ("B", "kB", "MB", "GB", "TB") if scale == "bytes" else ("", "k", "M", "G", "T")
    power = 0
    while abs(value) >= 999.5 and power < len(suffixes) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {suffixes[power]}".rstrip()


def _caption(
    rows: Sequence[ResultRow], columns: Sequence[Column], records: Sequence[dict[str, Any]]
) -> str:
    if not rows:
        return ""
    counts = sorted({len(row.seeds) for row in rows if row.seeds})
    plain = [c.metric for c in columns if c.scale == "plain"]
    single = any(len(r.seeds) == 1 and r.stderr.keys() & plain for r in rows)
    bare = any(len(r.seeds) == 1 and not r.stderr.keys() & plain for r in rows)
    parts = []
    if counts:
        span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"n = {span} seed{'s' if counts[-1] > 1 else ''} per model")
    if counts and counts[-1] > 1:
        parts.append("± is the standard deviation over seeds")
    if single:
        parts.append("with one seed ± is the standard error of the test accuracy")
    if bare:
        parts.append("one seed without ± shows no spread")
    parts += [
        f"{row.model}: seed{'s' if len(row.failed) > 1 else ''} "
        f"{', '.join(map(str, row.failed))} failed"
        for row in rows
        if row.failed
    ]
    profiles = sorted({row.profile for row in rows if row.profile})
    if profiles:
        parts.append(f"profile{'s' if len(profiles) > 1 else ''} {', '.join(profiles)}")
    return (
        "; ".join(parts + describe_timing([c.metric for c in columns], records) + origins(records))
        + "."
    )


def origins(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every distinct hardware and every distinct set of versions among the records."""
    facts = [record.get("provenance") or {} for record in records]
    machines = dict.fromkeys(filter(None, map(describe_hardware, facts)))
    versions = dict.fromkeys(filter(None, map(describe_versions, facts)))
    return [*machines, *versions]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Lines of a records.jsonl; a file that does not exist holds none.

    Raises:
        UserError: a line is not a JSON object.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: not JSON ({error}); delete the line"
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: not a JSON object; delete the line")
            records.append(record)
    return records
