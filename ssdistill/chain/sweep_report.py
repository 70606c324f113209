"""Table and pages of a sweep: its points, best first, and by what one of them is chosen."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from ssdistill.chain.sweep import Sweep
from ssdistill.chain.sweep_plan import PlannedPoint
from ssdistill.chain.sweep_points import Outcome
from ssdistill.evaluate.intervals import binomial_error
from ssdistill.experiment.sweep import HELD_OUT
from ssdistill.experiment.sweep_values import Range, value_text
from ssdistill.files import write_atomically
from ssdistill.record.provenance import provenance
from ssdistill.report.document import Headline, rendered
from ssdistill.report.tables.table import Table

PAGE, MARKDOWN = "sweep.html", "sweep.md"
ORDER = {"finished": 0, "stopped": 1, "failed": 2}
WORDS = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}


@dataclass(frozen=True)
class SweepReport:
    """Results of a sweep, also in ``sweep.html``, ``sweep.md`` and ``sweep.jsonl`` of its folder.

    Attributes:
        folder: ``<root>/sweeps/<name>-<digest8>``.
        outcomes: of every point, best first.
        table: the same for a reader.
        best: the chosen point; None as long as none has finished.
        command: that runs it by itself.
    """

    folder: Path
    outcomes: list[Outcome]
    table: Table
    best: Outcome | None
    command: str


def make_sweep_report(sweep: Sweep, outcomes: Mapping[int, Outcome]) -> SweepReport:
    """Write everything that shows the points that have ended."""
    ranked = sorted(outcomes.values(), key=lambda outcome: _rank(sweep, outcome))
    best = ranked[0] if ranked and ranked[0].status == "finished" else None
    table = points_table(sweep, ranked, with_reports=True)
    command = command_of(sweep, best) if best else ""
    caption, folder = _caption(sweep, ranked), sweep.folder
    chosen = f"Chosen: point {best.point + 1}, in {best.report}.\n\n    {command}\n" if best else ""
    title = f"Sweep of {sweep.base.name}"
    markdown = f"# {title}\n\n{table.to_markdown()}\n\n{chosen}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MARKDOWN, markdown)
    page = rendered(
        "sweep.html",
        title=title,
        summary=caption,
        notices=_notices(sweep),
        headline=_headline(sweep, best),
        points=table,
        command=command,
        provenance=provenance(),
        config=json.dumps(_config(sweep), indent=1),
    )
    write_atomically(folder / PAGE, page)
    shown = points_table(sweep, ranked, with_reports=False)
    return SweepReport(folder, ranked, shown, best, command)


def _rank(sweep: Sweep, outcome: Outcome) -> tuple[float, ...]:
    value = outcome.value or 0.0
    return ORDER[outcome.status], -value if sweep.settings.maximize else value, outcome.point


def points_table(sweep: Sweep, ranked: Sequence[Outcome], *, with_reports: bool) -> Table:
    """One row per point, best first.

    Args:
        with_reports: also name the folder of each point's report.
    """
    keys = list(sweep.settings.varied)
    several = any(len(outcome.by_seed) > 1 for outcome in ranked)
    metric = sweep.settings.metric + (" (%)" if sweep.settings.metric == HELD_OUT else "")
    header = ["point", *short_names(keys), metric, *(["std"] if several else []), "status"]
    rows = []
    for outcome in ranked:
        seeds = list(outcome.by_seed.values())
        value = "" if outcome.value is None else metric_text(sweep, outcome.value)
        spread = [metric_text(sweep, stdev(seeds)) if len(seeds) > 1 else ""] if several else []
        words = WORDS[outcome.status] + (f": {outcome.reason}" if outcome.reason else "")
        cells = [str(outcome.point + 1), *(value_text(outcome.values.get(key)) for key in keys)]
        rows.append((*cells, value, *spread, words, *([outcome.report] if with_reports else [])))
    header += ["report"] if with_reports else []
    words = {"status", "report"}
    texts = {
        name for name, key in zip(short_names(keys), keys, strict=True) if _is_text(sweep, key)
    }
    return Table(
        tuple(header),
        tuple(rows),
        caption=_caption(sweep, ranked),
        title=f"{sweep.base.name}: {_search(sweep)}",
        numeric=tuple(name not in texts for name in header),
        lead=(metric,),
    )


def metric_text(sweep: Sweep, value: float) -> str:
    """The metric that chooses, with as many digits as mean something."""
    if sweep.settings.metric == HELD_OUT:
        return f"{value:.2f}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def _is_text(sweep: Sweep, key: str) -> bool:
    values = sweep.settings.varied[key]
    return not isinstance(values, Range) and any(
        not isinstance(value, int | float) for value in values.values
    )


def short_names(keys: Sequence[str]) -> list[str]:
    """The keys by as many of their last parts as tell them apart."""
    parts = [key.split(".") for key in keys]
    names = []
    for key in parts:
        length = 1
        while sum(other[-length:] == key[-length:] for other in parts) > 1:
            length += 1
        names.append(".".join(key[-length:]))
    return names


def _search(sweep: Sweep) -> str:
    settings = sweep.settings
    return settings.search + ("" if settings.search == "grid" else f", seed {settings.seed}")


def _caption(sweep: Sweep, ranked: Sequence[Outcome]) -> str:
    settings, seeds = sweep.settings, sweep.base.seeds
    counts = Counter(outcome.status for outcome in ranked)
    ended = ", ".join(f"{counts[s]} {word}" for s, word in WORDS.items() if counts[s])
    which = "largest" if settings.maximize else "smallest"
    of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    several = any(len(outcome.by_seed) > 1 for outcome in ranked)
    spread = "; std is between seeds" if several else ""
    if settings.metric != HELD_OUT:
        what = f"{settings.metric} of '{sweep.role}' ({of_seeds}{spread})"
        by = f"Chosen by the {which} {what}, for which no label is read."
    else:
        fitted, held = sweep.held_out_counts
        by = (
            f"Chosen by the {which} accuracy of '{sweep.role}' ({of_seeds}{spread}) on {held} "
            f"held-out training labels, of a linear probe of {fitted} others"
            f"{_error(ranked, held)}. Test labels have no say."
        )
    total = f" of {settings.points}" if (settings.points or 0) > len(ranked) else ""
    stop = settings.stop_early
    stopping = f" Points are stopped early by {stop.by}." if stop else ""
    return f"{len(ranked)}{total} points: {ended or 'none has ended'}. {by}{stopping}"


def _error(ranked: Sequence[Outcome], held: int) -> str:
    """The standard error of the best accuracy that counting so few labels makes."""
    value = ranked[0].value if ranked else None
    return "" if value is None else f"; its standard error is {binomial_error(value, held):.2f}"


def _notices(sweep: Sweep) -> list[str]:
    notices = []
    if sweep.settings.reads_labels:
        notices.append(
            "Training labels were read to choose or to stop points; what was trained has seen none."
        )
    if sweep.base.profile != "paper":
        notices.append(
            f"Profile {sweep.base.profile}: not comparable with numbers published in papers."
        )
    return notices


def _headline(sweep: Sweep, best: Outcome | None) -> list[Headline]:
    if best is None or best.value is None:
        return []
    note = f"{sweep.settings.metric} of {sweep.role}"
    return [Headline(f"point {best.point + 1}", metric_text(sweep, best.value), note)]


def _config(sweep: Sweep) -> dict[str, Any]:
    settings = sweep.settings.model_dump(mode="json", exclude={"storage"})
    settings["parameters"] = {k: v.plain() for k, v in sweep.settings.varied.items()}
    return {**sweep.base.model_dump(mode="json", by_alias=True), "sweep": settings}


def command_of(sweep: Sweep, outcome: Outcome) -> str:
    """The command that runs a point by itself, with exactly its values."""
    settings = [f"{key}={json.dumps(value)}" for key, value in outcome.values.items()]
    # It has no sweep, and what is said of one would bring it back.
    config, *words = sweep.written.words
    before = [config, *(word for word in words if not word.startswith(("sweep.", "sweep=")))]
    root = sweep.workspace.root
    runs = [] if root == Path("runs") else ["--runs", str(root)]
    return shlex.join(["ssdistill", "run", *before, *settings, "sweep=null", *runs])


def plan_table(sweep: Sweep, planned: Sequence[PlannedPoint]) -> Table:
    """The points of a dry run and their stages, or the parameters where points are not known."""
    if sweep.points is None:
        rows = tuple((k, json.dumps(v.plain())) for k, v in sweep.settings.varied.items())
        count, size = sweep.settings.points, sweep.settings.at_once
        how = f"in groups of {size}" if size > 1 else "one after the other"
        return Table(
            ("parameter", "values"),
            rows,
            caption=f"{count} points, chosen {how} during the run.",
            title=f"{sweep.base.name}: {_search(sweep)}",
            numeric=(False, False),
        )
    names = short_names(list(sweep.settings.varied))
    rows = tuple(
        (
            str(entry.point.number + 1),
            *map(value_text, entry.point.values.values()),
            *map(str, (entry.stages, entry.shared, entry.missing)),
        )
        for entry in planned
    )
    first = "" if len(planned) == len(sweep.points) else f"The first {len(planned)} of "
    stages, shared = (sum(getattr(e, n) for e in planned) for n in ("stages", "shared"))
    return Table(
        ("point", *names, "stages", "shared", "to run"),
        rows,
        caption=f"{first}{len(sweep.points)} points: {stages - shared} different stages instead of "
        f"{stages}. "
        "'shared' are those of points above; 'to run' those that are neither shared nor finished.",
        title=f"{sweep.base.name}: {_search(sweep)}",
        lead=("shared", "to run"),
    )
