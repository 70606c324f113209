"""The pictures of a report: charts, views, neighbours."""

from typing import Any

import numpy as np
import torch

from ssdistill.chain.evaluation import GAUGED, gauged
from ssdistill.chain.plan import evaluations_of, models_of
from ssdistill.chain.training import VIEWS
from ssdistill.chain.workspace import Workspace
from ssdistill.evaluate.knn import neighbours
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.record.comparisons import Score, SizePoint
from ssdistill.record.grids import Neighbours, ViewGrid
from ssdistill.record.plots import Curves, curves_of, gauges_side_by_side
from ssdistill.record.run import read_metrics
from ssdistill.record.tables import results_rows

CURVED = ("control", "distilled", "recovered")
"""Roles whose training is drawn, beside the teachers'."""
SHOWN_QUERIES, SHOWN_NEIGHBOURS = 8, 6
ACCURACY = "probe/linear/top1"


def pictures(workspace: Workspace, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of :class:`ssdistill.record.page.PageData` that are drawn."""
    return _charts(workspace, records) | {
        "views": _views(workspace),
        "neighbours": _neighbours(workspace),
    }


def _charts(workspace: Workspace, records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in results_rows(records) if row.mean(ACCURACY) is not None]
    # The rivals of the distilled student are as large as it is: their names would hide each other.
    rivals = workspace.experiment.compare
    sized = [row for row in rows if row.mean("compress/bytes") and row.model not in rivals]
    if workspace.experiment.distill is None:
        # One encoder, trained in several ways.
        sized = []
    points = [
        SizePoint(r.model, r.mean("compress/bytes"), r.mean(ACCURACY), r.spread(ACCURACY))
        for r in sized
    ]
    scores = [
        Score(r.model, r.mean(ACCURACY), r.spread(ACCURACY), tuple(r.values[ACCURACY].values()))
        for r in rows
    ]
    models = models_of(workspace, workspace.experiment.seeds[0])
    made = {role: stage.kind for role, stage in models.items() if role not in rivals}
    chain = [role for role, kind in made.items() if kind in ("distill", "compress")]
    return {"sizes": points, "scores": scores, "chain": chain, "curves": _curves(workspace)}


def _curves(workspace: Workspace) -> list[Curves]:
    experiment = workspace.experiment
    trained = {
        role: stage
        for role, stage in models_of(workspace, experiment.seeds[0]).items()
        if stage.kind != "initialize"
    }
    lines = {role: read_metrics(stage.folder(workspace.root)) for role, stage in trained.items()}
    wanted: tuple[str, ...] = ("losses", "spread", "rank")
    charts = []
    if experiment.distill is None and experiment.compare:
        charts, wanted = gauges_side_by_side(lines), ("losses",)
        drawn = list(trained)
    else:
        drawn = [role for role in trained if role in (*experiment.all_teachers, *CURVED)]
    for role in drawn:
        charts += [c for c in curves_of(lines[role], role) if any(w in c.title for w in wanted)]
    return charts


def _views(workspace: Workspace) -> ViewGrid | None:
    """The first images of the first step, as the distilled student (else the teacher) saw them."""
    models = models_of(workspace, workspace.experiment.seeds[0])
    first = next(iter(workspace.experiment.all_teachers))
    stage = models.get("distilled", models[first])
    path = stage.folder(workspace.root) / VIEWS
    if not path.exists():
        return None
    rows = [list(view) for view in np.load(path)]
    columns = [str(number + 1) for number in range(len(rows[0]))]
    caption = f"The first images of the first step ({stage.role}), one row per view."
    return ViewGrid(rows, columns, caption)


def _neighbours(workspace: Workspace) -> Neighbours | None:
    """Nearest test images of a few test images, by teacher and by distilled student."""
    evaluations = evaluations_of(workspace, workspace.experiment.seeds[0])
    if "distilled" not in evaluations:
        return None
    settings = workspace.experiment.evaluate or EvaluateSettings()
    pictures = workspace.test.images[gauged(len(workspace.test), settings.gauge_images)]
    count = min(SHOWN_QUERIES, len(pictures))
    queries = np.linspace(0, len(pictures) - 1, count).astype(int)
    nearest = {}
    teacher = next(iter(workspace.experiment.all_teachers))
    for role in (teacher, "distilled"):
        z_ND = torch.as_tensor(np.load(evaluations[role].folder(workspace.root) / GAUGED))
        k = min(SHOWN_NEIGHBOURS, len(z_ND) - 1)
        found = torch.cat([index_Bk for _, index_Bk in neighbours(z_ND[queries], z_ND, k + 1)])
        # The nearest of all is the query itself.
        nearest[role] = [
            [i for i in row if i != q][:k] for q, row in zip(queries, found.tolist(), strict=True)
        ]
    shared = [
        [i in theirs for i in ours]
        for ours, theirs in zip(nearest["distilled"], nearest[teacher], strict=True)
    ]
    return Neighbours(
        queries=[pictures[q] for q in queries],
        teacher=[[pictures[i] for i in row] for row in nearest[teacher]],
        student=[[pictures[i] for i in row] for row in nearest["distilled"]],
        shared=shared,
        caption="Cosine similarity of embeddings, among the gauged test images.",
    )
