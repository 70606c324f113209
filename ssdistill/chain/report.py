"""Write the tables, page and record of an experiment from the records of its stages."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ssdistill.chain.collecting import collect
from ssdistill.chain.evaluation import counted_network
from ssdistill.chain.page_content import accuracy_of, page_content
from ssdistill.chain.plan import evaluations_of, models_of
from ssdistill.chain.stage_files import read_json
from ssdistill.chain.stages import Identity
from ssdistill.chain.training import NOTICES
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.data.displaying import channels_text
from ssdistill.errors import UserError, shortened
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import PretrainedRow
from ssdistill.record.provenance import provenance
from ssdistill.record.run import (
    METRICS_FILE,
    RUN_FILE,
    Run,
    load_run,
    read_metrics,
    write_atomically,
)
from ssdistill.record.tracker import Tracker
from ssdistill.report.advice import Advice, advise
from ssdistill.report.page import Headline, PageData, write_page
from ssdistill.report.readme import CLAIMS
from ssdistill.report.tables.all_tables import all_tables
from ssdistill.report.tables.columns import MEASURES
from ssdistill.report.tables.models import ResultRow, results_rows, scaled
from ssdistill.report.tables.table import Table
from ssdistill.report.verdict import Verdict, check_claims, verdict_table
from ssdistill.settings import Settings, Size, size_text
from ssdistill.train.progress import console


@dataclass(frozen=True)
class Report:
    """Results of a run.

    Attributes:
        folder: of ``report.html``, ``run.json``, ``metrics.jsonl`` and ``records.jsonl``.
        records: one per model and seed: model, seed, metrics, provenance.
        tables: results and, where the experiment makes claims, the verdicts.
        verdicts: one per claim.
        notices: what must be known to read the numbers rightly.
        claims: what the experiment claims.
        models: folders of the first seed's encoders, by role, for ``ssdistill.load``; the one to
            use comes last.
    """

    folder: Path
    records: list[dict[str, Any]]
    tables: list[Table]
    verdicts: list[Verdict] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    claims: Sequence[Settings] = ()
    models: dict[str, Path] = field(default_factory=dict)

    def publish(self, folder: Path) -> None:
        """Write records and claims where ``ssdistill report`` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "records.jsonl", as_lines(self.records))
        claims = [claim.model_dump(mode="json") for claim in self.claims]
        if claims:
            write_atomically(folder / CLAIMS, json.dumps(claims, indent=1) + "\n")
        else:  # those of an earlier run do not hold for these records
            (folder / CLAIMS).unlink(missing_ok=True)


def make_report(workspace: Workspace) -> Report:
    """Collect the finished stages and write everything that shows them."""
    experiment = workspace.experiment
    identity = Identity.of(experiment)
    folder = workspace.root / identity.folder
    records = collect(workspace)
    tables = all_tables(records, experiment.name)
    claims = experiment.paper.claims if experiment.paper else ()
    verdicts = check_claims(claims, records, experiment.profile)
    if verdicts:
        tables["claims"] = verdict_table(verdicts)
    first = models_of(workspace, experiment.seeds[0])
    models = {role: stage.folder(workspace.root) / MODEL for role, stage in first.items()}
    advice = advise(records)
    notices = [*notices_of(workspace), *(f"{a} ({a.model}: {models[a.model]})." for a in advice)]
    _record(workspace, identity, folder, records)
    write_atomically(folder / "records.jsonl", as_lines(records))
    page = PageData(
        title=experiment.name,
        summary=_summary(workspace, records),
        notices=notices,
        headline=_headline(
            results_rows(records), _pretrained(experiment), [a.preferred for a in advice]
        ),
        **tables,
        **page_content(workspace, records),
        provenance=provenance() | {"data": workspace.train.fingerprint},
        config=json.dumps(experiment.model_dump(mode="json", by_alias=True), indent=1),
    )
    write_page(folder, page)
    return Report(
        folder,
        records,
        list(tables.values()),
        verdicts,
        notices,
        claims,
        _preferred_last(models, advice),
    )


def _preferred_last(models: dict[str, Path], advice: Sequence[Advice]) -> dict[str, Path]:
    """The models with the one to use at the end: the last, unless its parent is to be preferred."""
    last = list(models)[-1]
    preferred = next((a.preferred for a in advice if a.model == last), last)
    return {**{r: p for r, p in models.items() if r != preferred}, preferred: models[preferred]}


def as_lines(records: Sequence[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)


def notices_of(workspace: Workspace) -> list[str]:
    """Notices needed to interpret the numbers, one line each."""
    experiment, notices = workspace.experiment, []
    if workspace.source.kind == "digits":
        notices.append(
            "Digits is a smoke test: its raw pixels (row 'pixels') leave a linear probe little "
            "to improve, so these numbers cannot show that distillation helps. "
            "configs/cifar10_cpu.yaml carries that claim."
        )
    if not workspace.source.has_labels:
        notices.append("No labels: evaluation skipped, label-free metrics shown.")
    for role, stage in models_of(workspace, experiment.seeds[0]).items():
        path = stage.folder(workspace.root) / NOTICES
        if path.exists():
            lines = read_json(path, lambda content: isinstance(content, list))
            notices += [f"{role}: {notice}." for notice in lines]
        if stage.written(workspace.root).metrics.get("compress/accepted") == 0:
            notices.append(
                f"{role}: the step was skipped by its gate; the row shows the model before it."
            )
    notices += _old_counts(workspace)
    if experiment.paper and experiment.paper.title:
        paper = experiment.paper
        reference = ", ".join(filter(None, (paper.arxiv, paper.table)))
        notices.append(f"Claims of: {paper.title}{f' ({reference})' if reference else ''}.")
    if experiment.paper and experiment.paper.deviations:
        notices.append(f"Deviations: {'; '.join(experiment.paper.deviations)}.")
    if experiment.profile != "paper":
        notices.append(
            f"Profile {experiment.profile}: not comparable with numbers published in papers."
        )
    return notices


def _old_counts(workspace: Workspace) -> list[str]:
    """Networks with attention whose MACs version 0.1.0 counted, where they stand beside others.

    Its count missed attention with PyTorch 2.14; a finished evaluation is reused all the same.
    """
    seed, folders = workspace.experiment.seeds[0], {}
    models, evaluations = models_of(workspace, seed), evaluations_of(workspace, seed)
    for role, evaluation in evaluations.items():
        record = evaluation.record(workspace.root)
        # Version 0.1.0 wrote no checksum into its records.
        if role in models and record and not record.checksum:
            modules = counted_network(models[role], workspace).modules()
            if any(
                isinstance(m, nn.MultiheadAttention) or hasattr(m, "fused_attn") for m in modules
            ):
                folders[role] = evaluation.folder(workspace.root)
    return [
        f"{role}: version 0.1.0 counted its MACs, and with PyTorch 2.14 missed those of attention; "
        f"to count them again, delete {folder} and run the experiment again."
        for role, folder in folders.items()
    ]


def _record(
    workspace: Workspace, identity: Identity, folder: Path, records: list[dict[str, Any]]
) -> None:
    """The experiment's own run: one line per seed, with every model's final numbers."""
    experiment = workspace.experiment
    _set_aside_damaged_record(folder)
    run = Run(
        folder,
        stage="report",
        role="report",
        columns=dict(identity.columns),
        digest=identity.digest,
        seed=experiment.seeds[0],
        name=experiment.name,
        group=identity.group,
        profile=experiment.profile,
        fingerprint=workspace.train.fingerprint,
        parents={r["model"]: _hashes(workspace, r["model"]) for r in records},
        config=experiment.model_dump(mode="json", by_alias=True),
    )
    with Tracker(run, experiment.tracking, identity.tags) as tracker:
        run.rewind(0)
        for position, seed in enumerate(experiment.seeds):
            of_seed = [r for r in records if r["seed"] == seed]
            line = {f"{r['model']}/{k}": v for r in of_seed for k, v in r["metrics"].items()}
            tracker.log(position, line)
        rows = results_rows(records)
        tracker.finish({f"{row.model}/{m}": row.mean(m) for row in rows for m in row.values})


def _set_aside_damaged_record(folder: Path) -> None:
    """The report's own record is made of the stages': a damaged one must not end every run."""
    for name, read in ((RUN_FILE, load_run), (METRICS_FILE, read_metrics)):
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            if not path.is_file():
                raise UserError(f"{path} is not a file; move it away")
            read(folder)
        except (UserError, OSError, RecursionError, TypeError) as error:
            number = 1
            while os.path.lexists(place := folder / f"damaged-{name}-{number}"):
                number += 1
            os.rename(path, place)
            console.print(f"  {shortened(error, 300)}: rebuilding it; the old one is now {place}")


def _hashes(workspace: Workspace, role: str) -> dict[str, str]:
    """Hash of the model's stage, by seed."""
    seeds = workspace.experiment.seeds
    stage_by_seed = {str(seed): models_of(workspace, seed).get(role) for seed in seeds}
    return {seed: stage.digest for seed, stage in stage_by_seed.items() if stage}


def _summary(workspace: Workspace, records: list[dict[str, Any]]) -> str:
    experiment = workspace.experiment
    seeds = len(experiment.seeds)
    return (
        f"{workspace.source.description}: {len(workspace.train)} training and "
        f"{len(workspace.test)} test images of {_pixels(workspace.image_size)}"
        f"{channels_text(workspace.train)}. "
        f"{_subtitle(experiment)}, without labels until the probes; "
        f"{seeds} seed{'s' if seeds > 1 else ''}, profile {experiment.profile}."
    )


def _pixels(size: Size) -> str:
    return f"{size} pixels a side" if isinstance(size, int) else f"{size_text(size)} pixels"


def _subtitle(experiment: Experiment) -> str:
    trained = {role: method.kind for role, (_, method) in experiment.pretrained.items()}
    kinds = [trained.get(role, t.kind) for role, t in experiment.all_teachers.items()]
    listed = " and ".join(dict.fromkeys(kinds))
    if experiment.distill is None:
        rivals = len(experiment.compare)
        others = f" and {rivals} other ways" if rivals else ""
        return f"Encoders by {listed}{others}{_compression(experiment)}"
    finished = _compression(experiment)
    several = f"{len(kinds)} teachers" if len(kinds) > 1 else "teacher"
    return f"A {listed} {several}, distilled into a smaller student{finished}"


def _compression(experiment: Experiment) -> str:
    variants = [steps for steps in experiment.compression_variants.values() if steps]
    kinds = list(dict.fromkeys(step.kind for steps in variants for step in steps))
    several = f" in {len(variants)} plans" if len(variants) > 1 else ""
    listed = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    return f", compressed by {listed}{several}" if kinds else ""


def _pretrained(experiment: Experiment) -> list[str]:
    rivals = [row for row, s in experiment.compare.items() if isinstance(s, PretrainedRow)]
    return [*experiment.all_teachers, *rivals]


def _headline(
    rows: list[ResultRow], pretrained: Iterable[str], preferred: Iterable[str]
) -> list[Headline]:
    by_model = {row.model: row for row in rows}
    last, metric = rows[-1], accuracy_of(rows)
    words = f"linear {MEASURES[metric.rpartition('/')[2]].removesuffix(' (%)')}"
    shown = []
    for name in (*pretrained, "control", "distilled", *preferred, last.model):
        row = by_model.get(name)
        if row and (accuracy := row.mean(metric)) is not None:
            size = row.mean("compress/bytes")
            note = f"{words}, {scaled(size, 'bytes')}" if size else words
            shown.append(Headline(name, f"{accuracy:.1f} %", note))
    return list({item.name: item for item in shown}.values())
