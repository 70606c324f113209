"""Generate the marked tables of README files from records."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ssdistill.errors import NO_FILE, UserError, nearest
from ssdistill.files import user_path, write_atomically
from ssdistill.report.tables.all_tables import all_tables
from ssdistill.report.tables.models import MISSING, origins, read_records
from ssdistill.report.tables.table import Table
from ssdistill.report.verdict import ClaimSettings, check_claims, verdict_table

CLAIMS = "claims.json"
MARKER = re.compile(r"^<!-- results:(begin|end) (\S+) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Outdated:
    """A block that differs from the records."""

    file: Path
    block: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: block '{self.block}' {self.reason}"


def write_reports(root: Path | str, check: bool = False) -> list[Outdated]:
    """Rewrite every marked block of README.md and experiments/*/README.md from records.

    A block named ``x`` shows ``experiments/x/records.jsonl`` and, where there is a
    ``claims.json`` beside it, the verdicts on those claims; where the records are of benchmarks,
    ``x`` shows all of them, ``x/y`` the one called ``y``.

    Args:
        root: folder of the README; check: write nothing.

    Returns:
        the blocks that differed, in file order; when checking also those that cannot be made
        (unknown name, no records).

    Raises:
        UserError: unpaired markers; a record that cannot be read; and, when writing, a block
            that cannot be made. Nothing is written then.
    """
    root = user_path(root)
    if not root.is_dir():
        reason = "a file, not a folder" if root.exists() else NO_FILE
        raise UserError(f"--root {root}: {reason}; check the path")
    outdated: list[Outdated] = []
    changed: dict[Path, str] = {}
    files = [root / "README.md", *sorted((root / "experiments").glob("*/README.md"))]
    texts = {file: _text(file) for file in files if file.exists()}
    if not any(MARKER.search(text) for text in texts.values()):
        raise UserError(
            f"--root {root}: no README.md with a block <!-- results:begin NAME --> here or below "
            "experiments/; name the folder of one"
        )
    for file, text in texts.items():
        new, differing = _rewritten(root, file, text, check)
        outdated += differing
        if new != text:
            changed[file] = new
    if not check:
        for file, text in changed.items():
            write_atomically(file, text)
    return outdated


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file}: cannot be read (not UTF-8 text); save it as UTF-8 text") from None


def _rewritten(root: Path, file: Path, text: str, check: bool) -> tuple[str, list[Outdated]]:
    shown = file.relative_to(root)
    pieces, outdated, position = [], [], 0
    for name, start, end in _blocks(shown, text):
        try:
            rendered = f"\n{render_block(root, name)}\n"
        except UserError as error:
            if not check:
                raise UserError(f"{shown}: {error}") from error
            outdated.append(Outdated(shown, name, f"cannot be generated: {error}"))
            continue
        if text[start:end] != rendered:
            outdated.append(Outdated(shown, name, "differs from the records"))
        pieces += [text[position:start], rendered]
        position = end
    return "".join(pieces) + text[position:], outdated


def _blocks(file: Path, text: str) -> list[tuple[str, int, int]]:
    """(name, start, end) of what lies between each pair of markers."""
    blocks, opened = [], None
    for marker in MARKER.finditer(text):
        kind, name = marker.groups()
        if kind == "begin" and opened is None:
            opened = (name, marker.end())
        elif kind == "end" and opened is not None and opened[0] == name:
            blocks.append((name, opened[1], marker.start()))
            opened = None
        else:
            raise UserError(
                f"{file}: marker 'results:{kind} {name}' has no partner; add the other marker"
            )
    if opened is not None:
        raise UserError(
            f"{file}: marker 'results:begin {opened[0]}' has no partner; add the other marker"
        )
    return blocks


def render_block(root: Path, name: str) -> str:
    """Markdown of one block.

    Raises:
        UserError: no experiment or benchmark is called so, or it has no records.
    """
    experiment, _, benchmark = name.partition("/")
    folders = sorted(p.name for p in (root / "experiments").glob("*") if p.is_dir())
    if experiment not in folders:
        raise UserError(_unknown("experiment", name, folders))
    path = Path("experiments") / experiment / "records.jsonl"
    records = read_records(root / path)
    if not records:
        raise UserError(
            f"{path} contains no records; run the experiment with --publish {path.parent}"
        )
    if all("benchmark" in record for record in records):
        return _benchmarks(records, benchmark)
    if benchmark:
        raise UserError(_unknown("experiment", name, folders))
    results = "\n\n".join(table.to_markdown() for table in all_tables(records).values())
    claims = root / "experiments" / experiment / CLAIMS
    if not claims.exists():
        return results
    expected = TypeAdapter(tuple[ClaimSettings, ...]).validate_json(claims.read_text())
    verdicts = check_claims(expected, records, records[0].get("profile", "paper"))
    return f"{results}\n\n{verdict_table(verdicts).to_markdown()}"


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"unknown {what} '{name}'{nearest(name, known)}; correct the name of the block"


def _benchmarks(records: list[dict[str, Any]], name: str) -> str:
    latest = {record["benchmark"]: record for record in records}  # a later line replaces
    if name and name not in latest:
        raise UserError(_unknown("benchmark", name, latest))
    shown = [latest[name]] if name else list(latest.values())
    return "\n\n".join(
        f"**{r.get('title', r['benchmark'])}**\n\n" + benchmark_table(r).to_markdown()
        for r in shown
    )


def benchmark_table(record: Mapping[str, Any]) -> Table:
    """A benchmark's ratios, or its rows where it has no ratios.

    ``ratios`` is ``{name: number}`` or ``{name: {"median" | "mean" | "value": …, "low": …,
    "high": …, "n": …}}``, or a list of such with ``name``; ``rows`` is a list of flat objects.
    """
    note = "; ".join(filter(None, [record.get("note", ""), *origins([record])]))
    caption = f"{note}." if note else ""
    if ratios := record.get("ratios"):
        items = ratios.items() if isinstance(ratios, Mapping) else ((r["name"], r) for r in ratios)
        body = tuple((str(name), *_ratio(value)) for name, value in items)
        return Table(("comparison", "ratio", "range"), body, caption, record["benchmark"])
    return _rows_table(record.get("rows") or [], caption, record["benchmark"])


def _ratio(value: Any) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        return f"{float(value):.2f}×", MISSING
    middle = next((value[k] for k in ("median", "mean", "value", "ratio") if k in value), None)
    shown = MISSING if middle is None else f"{float(middle):.2f}×"
    if value.get("low") is None or value.get("high") is None:
        return shown, MISSING
    return shown, f"{float(value['low']):.2f} to {float(value['high']):.2f}"


def _rows_table(rows: Iterable[Mapping[str, Any]], caption: str, title: str) -> Table:
    rows = list(rows)
    names = tuple(dict.fromkeys(key for row in rows for key in row))
    body = tuple(tuple(_cell_text(row.get(name)) for name in names) for row in rows)
    numeric = tuple(
        all(isinstance(row.get(name), int | float | None) for row in rows) for name in names
    )
    return Table(names, body, caption, title, numeric)


def _cell_text(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)
