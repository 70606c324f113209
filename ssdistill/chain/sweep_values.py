"""What chooses a point of a sweep: a metric of a model, read from records or probed."""

import math
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from ssdistill.chain.plan import models_of
from ssdistill.chain.report import Report
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.errors import UserError, nearest
from ssdistill.evaluate.held_out import HeldOutProbe
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sweep import HELD_OUT, LABEL_FREE, SweepSettings

OF_TEACHERS = {"teacher", "teachers", "pretrain", "data"}
"""Sections that change a teacher, or its images."""
TRAINED = ("pretrain", "distill")
"""Kinds of stages that can be stopped early."""


def chosen_by(settings: SweepSettings, workspace: Workspace) -> tuple[str, str]:
    """The model that the metric is read from, and the training that is stopped early.

    Raises:
        UserError: a metric that cannot be read, or that cannot compare the points.
    """
    experiment = workspace.experiment
    models = models_of(workspace, experiment.seeds[0])
    role = settings.model or (
        "distilled" if experiment.distill else next(iter(experiment.all_teachers))
    )
    if role not in models:
        known = ", ".join(models)
        raise UserError(f"sweep.model: '{role}' is unknown{nearest(role, models)}; known: {known}")
    metric = "maximize" if settings.maximize else "minimize"
    _check_agreement(f"sweep.{metric}={settings.metric}", settings.metric, settings, experiment)
    if settings.reads_labels:
        _check_labels(settings, workspace)
    if stop := settings.stop_early:
        _check_agreement("sweep.stop_early.by=agreement", stop.by, settings, experiment)
    watched = models[role]
    while watched.kind == "compress":
        watched = watched.parents["original"]
    if settings.stop_early and watched.kind not in TRAINED:
        raise UserError(
            f"sweep.stop_early: '{role}' is not trained, so no training can be stopped; remove "
            "stop_early, or set sweep.model"
        )
    if settings.stop_early and settings.stop_early.by == "agreement" and watched.kind != "distill":
        raise UserError(
            f"sweep.stop_early.by=agreement: '{watched.role}' learns from no teacher; set "
            "sweep.stop_early.by=rankme"
        )
    return role, watched.role


def _check_agreement(
    key: str, metric: str, settings: SweepSettings, experiment: Experiment
) -> None:
    """Refuse agreement with a teacher where points have different teachers."""
    if not metric.startswith("agree"):
        return
    for parameter in settings.varied:
        if parameter.split(".")[0] in OF_TEACHERS:
            raise UserError(
                f"{key}: {parameter} changes the teacher, and agreement with different teachers "
                "cannot be compared; choose by collapse/lidar or held_out"
            )


def _check_labels(settings: SweepSettings, workspace: Workspace) -> None:
    if workspace.experiment.evaluate is None:
        raise UserError(
            f"sweep: evaluate=null forbids reading labels; choose by a label-free metric instead "
            f"of {HELD_OUT}"
        )
    if not workspace.source.has_labels:
        raise UserError(
            f"sweep: {HELD_OUT} requires training labels, and the data has none; choose by a "
            "label-free metric, such as collapse/lidar"
        )


def held_out_probe(settings: SweepSettings, workspace: Workspace) -> HeldOutProbe:
    """The split of the training labels that the points are compared on."""
    split = settings.held_out
    return HeldOutProbe.of(workspace.train, split.fraction, split.images, split.seed)


def values_of(
    settings: SweepSettings, experiment: Experiment, report: Report, role: str, root: Path
) -> dict[int, float]:
    """The metric that chooses, by seed.

    Raises:
        UserError: the point has no such model or metric, or it is not finite.
    """
    if settings.metric == HELD_OUT:
        values = _probed(settings, experiment, role, root)
    else:
        records = [record for record in report.records if record["model"] == role]
        if not records:
            known = {record["model"] for record in report.records}
            raise UserError(_no_model(role, known))
        measured = {record["seed"]: record["metrics"] for record in records}
        names = {name for metrics in measured.values() for name in metrics}
        if settings.metric not in names:
            known = ", ".join(name for name in LABEL_FREE if name in names)
            raise UserError(
                f"sweep: '{settings.metric}' of '{role}' was not measured; measured: {known}"
            )
        values = {seed: metrics.get(settings.metric) for seed, metrics in measured.items()}
    for seed, value in values.items():
        if value is None or not math.isfinite(value):
            raise UserError(
                f"sweep: {settings.metric} of '{role}', seed {seed}, is not finite; "
                "lower optim.lr, or choose another metric"
            )
    return {seed: value for seed, value in values.items() if value is not None}


def _no_model(role: str, known: Iterable[str]) -> str:
    return (
        f"sweep.model: this point has no '{role}'{nearest(role, known)}; known: "
        f"{', '.join(sorted(known))}"
    )


def _probed(
    settings: SweepSettings, experiment: Experiment, role: str, root: Path
) -> dict[int, float | None]:
    workspace = open_workspace(experiment, root)
    probe = held_out_probe(settings, workspace)
    values: dict[int, float | None] = {}
    for seed in experiment.seeds:
        models = models_of(workspace, seed)
        if role not in models:
            raise UserError(_no_model(role, models))
        stage = models[role]
        if stage.seed not in values:
            encoder = workspace.encoder(stage)
            device = workspace.device if isinstance(encoder, nn.Module) else None
            values[stage.seed] = probe.accuracy(encoder, workspace.image_size, device)
    return values
