"""Collect one record per model and seed from its training, evaluation and benchmark stages."""

from dataclasses import asdict
from typing import Any

from ssdistill.chain.evaluation import answers_of
from ssdistill.chain.latency import timing_of
from ssdistill.chain.plan import evaluations_of, latency_stage, models_of
from ssdistill.chain.stages import Stage
from ssdistill.chain.workspace import Workspace
from ssdistill.evaluate.paired import paired_test
from ssdistill.report.advice import PARENT
from ssdistill.report.tables.paired import PAIRED
from ssdistill.report.tables.steps import PREFIX


def collect(workspace: Workspace) -> list[dict[str, Any]]:
    """One record per model and seed, from the evaluation and training stages.

    What all seeds share stands there once: repeated, it would look like a spread of nothing.
    """
    experiment, root = workspace.experiment, workspace.root
    records, seen = [], set()
    for seed in experiment.seeds:
        timed = latency_stage(workspace, seed)
        latencies = timed.written(root).metrics if timed else {}
        timing = timing_of(timed, root) if timed else {}
        models = models_of(workspace, seed)
        evaluations = evaluations_of(workspace, seed)
        for role, evaluation in evaluations.items():
            if (evaluation.digest, evaluation.seed) in seen:
                continue
            seen.add((evaluation.digest, evaluation.seed))
            record = evaluation.written(root)
            trained = models[role].written(root).metrics if role in models else {}
            metrics = record.metrics | {k: v for k, v in trained.items() if k.startswith("train/")}
            metrics |= step_metrics(trained)
            if experiment.distill is None and experiment.compressed is None:
                # There is nothing here that was meant to agree.
                metrics = {k: v for k, v in metrics.items() if not k.startswith("agree/")}
            for name, value in latencies.items():
                key, _, model = name.rpartition("/")
                if model == role:
                    metrics[key] = value
            words: dict[str, Any] = {"timing": timing[role]} if role in timing else {}
            if tests := _paired(role, evaluations, workspace):
                words[PAIRED] = tests
            if parent := _parent(models.get(role), evaluations, workspace):
                words[PARENT] = parent
            records.append(
                {
                    "experiment": experiment.name,
                    "profile": experiment.profile,
                    "model": role,
                    "seed": evaluation.seed,
                    "metrics": metrics,
                    "provenance": record.provenance,
                    "protocol": {
                        "data": workspace.source.description,
                        "evaluate": evaluation.config["evaluate"],
                    },
                    **words,
                }
            )
    order = ["pixels", *models_of(workspace, experiment.seeds[0])]
    return sorted(records, key=lambda r: (order.index(r["model"]), r["seed"]))


def _paired(role: str, evaluations: dict[str, Stage], workspace: Workspace) -> list[dict[str, Any]]:
    """Return paired tests of a model against each teacher and against its uncompressed form."""
    experiment = workspace.experiment
    if role in experiment.all_teachers or role == "pixels":
        return []
    references = dict.fromkeys([*experiment.all_teachers, experiment.compressed or role])
    return [
        test
        for reference in references
        if reference != role
        for test in _tests(role, reference, evaluations, workspace)
    ]


def _tests(
    role: str, reference: str, evaluations: dict[str, Stage], workspace: Workspace
) -> list[dict[str, Any]]:
    """Paired tests of two models, for every protocol with per-image predictions of both."""
    own, other = (answers_of(evaluations[name], workspace) for name in (role, reference))
    return [
        {
            "reference": reference,
            "protocol": protocol,
            **asdict(paired_test(own["targets"], own[protocol], other[protocol])),
        }
        for protocol in own
        if protocol in other and protocol != "targets"
    ]


def _parent(
    stage: Stage | None, evaluations: dict[str, Stage], workspace: Workspace
) -> dict[str, Any]:
    """The input model of a compression step and paired tests against it; else empty."""
    if stage is None or stage.kind != "compress":
        return {}
    parent = stage.parents["model"].role
    return {"model": parent, "paired": _tests(stage.role, parent, evaluations, workspace)}


def step_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a compression stage under the names of a step."""
    if "compress/accepted" not in metrics:
        return {}
    compared = ("compress/", "agree/original/")
    return {
        f"{PREFIX}{name.removeprefix(start)}": value
        for name, value in metrics.items()
        for start in compared
        if name.startswith(start)
    }
