"""Charts and images of a report: curves, views, nearest neighbors."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ssdistill.chain.evaluation import answers_of, label_free_sample, sample_features
from ssdistill.chain.plan import evaluations_of, models_of
from ssdistill.chain.stage_files import read_array
from ssdistill.chain.stages import Stage
from ssdistill.chain.training import VIEWS
from ssdistill.chain.workspace import Workspace
from ssdistill.errors import UserError, shortened
from ssdistill.evaluate.classification import classify
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.label_free.nearest import nearest_others
from ssdistill.measure.pareto import FRONT, load_front
from ssdistill.record.run import METRICS_FILE, read_metrics
from ssdistill.report.charts.comparisons import LatencyPoint, Score, SizePoint
from ssdistill.report.charts.confusion import confusion_svg
from ssdistill.report.charts.grids import Neighbors, ViewGrid
from ssdistill.report.charts.pareto import front_svg
from ssdistill.report.charts.plots import Curves, curves_of, label_free_side_by_side
from ssdistill.report.tables.columns import MEASURES, protocol_words
from ssdistill.report.tables.models import ResultRow, results_rows
from ssdistill.train.progress import console

CURVED = ("control", "distilled")
"""Roles whose training is drawn, beside the teachers' and what is trained again after pruning."""
SHOWN_QUERIES, SHOWN_NEIGHBORS = 8, 6
ACCURACY, LATENCY = "probe/linear/top1", "compress/latency_ms"
PRECISION = "probe/linear/map"


def page_content(workspace: Workspace, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of :class:`ssdistill.report.page.PageData` that are drawn."""
    return _charts(workspace, records) | {
        "confusions": _confusions(workspace),
        "views": _views(workspace),
        "neighbors": _neighbors(workspace),
        "fronts": _fronts(workspace),
    }


def _mean(row: ResultRow, metric: str) -> float:
    return cast("float", row.mean(metric))  # callers skip rows without it


def accuracy_of(rows: Sequence[ResultRow]) -> str:
    """Return the metric of charts: mean average precision if images have several labels."""
    several = any(row.mean(PRECISION) is not None for row in rows)
    return PRECISION if several else ACCURACY


def _charts(workspace: Workspace, records: list[dict[str, Any]]) -> dict[str, Any]:
    every = results_rows(records)
    accuracy = accuracy_of(every)
    rows = [row for row in every if row.mean(accuracy) is not None]
    # The rivals of the distilled student are as large as it is: their names would hide each other.
    # So is an untrained one, whose accuracy is so low that the others could not be distinguished.
    left_out = {*workspace.experiment.compare, "untrained"}
    sized = [row for row in rows if row.mean("compress/bytes") and row.model not in left_out]
    if workspace.experiment.distill is None and workspace.experiment.compressed is None:
        # One encoder, trained in several ways.
        sized = []
    points = [
        SizePoint(r.model, _mean(r, "compress/bytes"), _mean(r, accuracy), r.spread(accuracy))
        for r in sized
    ]
    timed = [row for row in sized if row.mean(LATENCY)]
    latencies = [
        LatencyPoint(r.model, _mean(r, LATENCY), _mean(r, accuracy), r.spread(accuracy))
        for r in timed
    ]
    scores = [
        Score(r.model, _mean(r, accuracy), r.spread(accuracy), tuple(r.values[accuracy].values()))
        for r in rows
    ]
    models = models_of(workspace, workspace.experiment.seeds[0])
    return {
        "sizes": points,
        "latencies": latencies if len(latencies) > 1 else [],
        "scores": scores,
        "measure": f"Linear {MEASURES[accuracy.rpartition('/')[2]]}",
        "chain": lineage(list(models.values())[-1]),
        "curves": _curves(workspace),
    }


def lineage(stage: Stage) -> list[str]:
    """Roles from what compression was given to ``stage``, each made from the one before.

    What else was made on the way, such as a file for another runtime, is not among them.
    """
    roles = [stage.role]
    while stage.kind == "compress":
        stage = stage.parents["model"]
        roles.append(stage.role)
    return roles[::-1] if len(roles) > 1 or stage.kind == "distill" else []


def _curves(workspace: Workspace) -> list[Curves]:
    experiment = workspace.experiment
    trained = {
        role: stage
        for role, stage in models_of(workspace, experiment.seeds[0]).items()
        if stage.kind != "initialize"
    }
    lines = {role: _logged(stage.folder(workspace.root)) for role, stage in trained.items()}
    title_words: tuple[str, ...] = ("losses", "std", "rank")
    charts = []
    if experiment.distill is None and experiment.compare:
        charts, title_words = label_free_side_by_side(lines), ("losses",)
        drawn = list(trained)
    else:
        usual = (*experiment.all_teachers, *CURVED)
        drawn = [
            role
            for role, stage in trained.items()
            if role in usual or (stage.kind == "compress" and lines[role])
        ]
    for role in drawn:
        charts += [
            c for c in curves_of(lines[role], role) if any(w in c.title for w in title_words)
        ]
    return charts


def _fronts(workspace: Workspace) -> list[str]:
    """What the searches of the first seed found, drawn."""
    models = models_of(workspace, workspace.experiment.seeds[0])
    folders = [stage.folder(workspace.root) for stage in models.values()]
    return [
        front_svg(load_front(folder / FRONT)) for folder in folders if (folder / FRONT).exists()
    ]


def _confusions(workspace: Workspace) -> list[Callable[[float], str]]:
    """Of the first seed's teacher, student and last model; by the linear probe if requested."""
    seed = workspace.experiment.seeds[0]
    evaluations = evaluations_of(workspace, seed)
    teacher = next(iter(workspace.experiment.all_teachers))
    last_role = list(models_of(workspace, seed))[-1]
    charts = []
    for role in dict.fromkeys((teacher, "distilled", last_role)):
        answers = answers_of(evaluations[role], workspace) if role in evaluations else {}
        protocols = sorted(answers.keys() - {"targets"}, key=lambda name: (name != "linear", name))
        if not protocols:
            continue
        classification = classify(
            answers["targets"],
            predictions=answers[protocols[0]],
            class_names=workspace.test.class_names,
        )
        title = f"{role}, {protocol_words(protocols[0])}"
        charts.append(
            partial(confusion_svg, classification.confusion_KK, classification.names, title)
        )
    return charts


def _logged(folder: Path) -> list[dict[str, Any]]:
    """Logged metrics of a stage; empty, with a warning, if the file is damaged."""
    try:
        if os.path.lexists(folder / METRICS_FILE) and not (folder / METRICS_FILE).is_file():
            raise UserError(f"{folder / METRICS_FILE} is not a file; move it away")
        return read_metrics(folder)
    except UserError as error:
        console.print(f"  no curves for {folder.parent.name}: {shortened(error, 300)}")
        return []


def _views(workspace: Workspace) -> ViewGrid | None:
    """The first images of the first step, as the distilled student (else the teacher) saw them."""
    models = models_of(workspace, workspace.experiment.seeds[0])
    first = next(iter(workspace.experiment.all_teachers))
    stage = models.get("distilled", models[first])
    path = stage.folder(workspace.root) / VIEWS
    if not path.exists():
        return None
    try:
        rows = [list(view) for view in read_array(path, 5, "u")]
    except UserError as error:
        # A missing chart is no reason to train again.
        console.print(f"  no views in the report: {shortened(error, 300)}")
        return None
    columns = [str(number + 1) for number in range(len(rows[0]))]
    caption = f"The first images of the first step ({stage.role}), one row per view."
    return ViewGrid(rows, columns, caption)


def _neighbors(workspace: Workspace) -> Neighbors | None:
    """Nearest test images of a few test images, by teacher and by distilled student."""
    evaluations = evaluations_of(workspace, workspace.experiment.seeds[0])
    if "distilled" not in evaluations:
        return None
    settings = workspace.experiment.evaluate or EvaluateSettings()
    images = workspace.test.images[
        label_free_sample(len(workspace.test), settings.label_free_images)
    ]
    count = min(SHOWN_QUERIES, len(images))
    queries = np.linspace(0, len(images) - 1, count).astype(int)
    nearest = {}
    teacher = next(iter(workspace.experiment.all_teachers))
    for role in (teacher, "distilled"):
        z_ND = torch.as_tensor(sample_features(evaluations[role], workspace))
        k = min(SHOWN_NEIGHBORS, len(z_ND) - 1)
        nearest[role] = nearest_others(z_ND, k, torch.as_tensor(queries)).tolist()
    shared = [
        [i in teacher_row for i in student_row]
        for student_row, teacher_row in zip(nearest["distilled"], nearest[teacher], strict=True)
    ]
    shown = sorted({*queries.tolist(), *(i for rows in nearest.values() for r in rows for i in r)})
    pixels = dict(zip(shown, workspace.test.displayed(images[shown]), strict=True))
    return Neighbors(
        queries=[pixels[q] for q in queries.tolist()],
        teacher=[[pixels[i] for i in row] for row in nearest[teacher]],
        student=[[pixels[i] for i in row] for row in nearest["distilled"]],
        shared=shared,
        caption="Cosine similarity of embeddings, among the label-free sample of test images.",
    )
