"""Plan an experiment as a list of stages, parents first."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ssdistill.chain.plugged import with_plugins
from ssdistill.chain.stage_configs import (
    distillation_config,
    encoder_config,
    pretraining_config,
)
from ssdistill.chain.stages import Stage
from ssdistill.chain.workspace import Workspace
from ssdistill.compress import Step, StepSettings
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import (
    DistillSettings,
    NetworkSettings,
    PretrainedRow,
    PretrainedTeacher,
)
from ssdistill.settings.registry import STEPS

Stages = dict[str, Stage]
CONTROL_ROLES = {"steps": "control", "time": "control_time", "total": "control_total"}
"""Role of the control at each budget."""


def plan_stages(workspace: Workspace) -> list[Stage]:
    """Every stage of the experiment, parents first; stages common to all seeds occur once."""
    ordered: dict[tuple[str, int], Stage] = {}

    def add(stage: Stage) -> None:
        if (stage.digest, stage.seed) not in ordered:
            for parent in stage.parents.values():
                add(parent)
            ordered[stage.digest, stage.seed] = stage

    for seed in workspace.experiment.seeds:
        for stage in _Planner(workspace, seed).stages():
            add(stage)
    return list(ordered.values())


def models_of(workspace: Workspace, seed: int) -> dict[str, Stage]:
    """The stages of one seed that make an encoder, by role, in the order of the table."""
    return _Planner(workspace, seed).models()


def evaluations_of(workspace: Workspace, seed: int) -> dict[str, Stage]:
    """The evaluation of each of :func:`models_of`, by role of the model."""
    planner = _Planner(workspace, seed)
    return planner.evaluations(planner.models())


def latency_stage(workspace: Workspace, seed: int) -> Stage | None:
    """One measurement of all models of one seed together.

    None where nothing is distilled or compressed: rows that differ in their training alone are
    equally fast. And where ``measure.latency`` is false.
    """
    if not _is_timed(workspace.experiment):
        return None
    planner = _Planner(workspace, seed)
    return planner.latency(planner.models())


@dataclass
class _StepInputs:
    """The models that the next compression step of a variant gets.

        original ── prune ── prune ── refit ─┬─ quantize (leaf)
            └ ``before`` of all five steps   └─ export (leaf)

    Attributes:
        original: what the first step of the variant gets.
        model: what this step gets.
        before: what the last run of reshaping steps got, for refit to compare its layers with.
        after_reshaping: whether the step before this one belongs to such a run.
    """

    original: Stage
    model: Stage
    before: Stage
    after_reshaping: bool = False

    def parents(self) -> dict[str, Stage]:
        return {"model": self.model, "before": self.before, "original": self.original}

    def advance(self, step: type[Step], result: Stage) -> None:
        """Go on from the result of a step; a leaf, a file for a runtime, has no next step."""
        if step.leaf:
            return
        if step.reshapes and not self.after_reshaping:
            self.before = self.model
        self.model, self.after_reshaping = result, step.reshapes


class _Planner:
    """Builds the stages of one seed."""

    def __init__(self, workspace: Workspace, seed: int):
        self.workspace, self.experiment, self.seed = workspace, workspace.experiment, seed

    def stages(self) -> list[Stage]:
        models = self.models()
        latency = [self.latency(models)] if _is_timed(self.experiment) else []
        return [*models.values(), *self.evaluations(models).values(), *latency]

    def models(self) -> dict[str, Stage]:
        experiment = self.experiment
        untrained = self._initialize()
        models = {"untrained": untrained} if untrained else {}
        teachers = {role: self._teacher(role) for role in experiment.all_teachers}
        models |= teachers
        for row, settings in experiment.compare.items():
            if isinstance(settings, PretrainedRow):
                models[row] = self._pretrained(row, settings, next(iter(teachers.values())))
        if experiment.distill is None:
            pretrained = next(iter(teachers.values()))
            return models | self._compressed(pretrained, teachers)
        distilled = self._distill(teachers, experiment.distill, "distilled")
        if experiment.control and experiment.pretrain:
            models |= self._controls(teachers, distilled)
        for row, settings in experiment.compare.items():
            if isinstance(settings, DistillSettings):
                models[row] = self._distill(teachers, settings, row)
        # Last of the students, so that its compressed models follow it in the table.
        models["distilled"] = distilled
        models |= self._compressed(distilled, teachers)
        return models

    def evaluations(self, models: dict[str, Stage]) -> dict[str, Stage]:
        """Plan the evaluations, teachers first: others may be compared with their features."""
        settings = self.experiment.evaluate
        config = {
            "labels": settings is not None and self.workspace.source.has_labels,
            "evaluate": (settings or EvaluateSettings()).model_dump(mode="json"),
            "test": self.workspace.test.fingerprint,
        }
        evaluations = {
            role: self._stage(role, "evaluate", config, {"model": models[role]})
            for role in self.experiment.all_teachers
        }
        references = dict(evaluations) if _models_differ_in_size(self.experiment) else {}
        for role, model in models.items():
            if role not in evaluations:
                parents = {"model": model, **references}
                evaluations[role] = self._stage(role, "evaluate", config, parents)
        if settings is not None and config["labels"] and settings.pixels:
            evaluations["pixels"] = self._stage("pixels", "evaluate", config, references)
        return evaluations

    def latency(self, models: dict[str, Stage]) -> Stage:
        config = {"batch_sizes": [1, 64], "memory": self.experiment.measure.memory}
        return self._stage("latency", "latency", config, models)

    def _initialize(self) -> Stage | None:
        experiment = self.experiment
        if experiment.student:
            encoder = encoder_config(self.workspace, experiment.student.encoder)
        elif isinstance(experiment.teacher, PretrainedTeacher):
            encoder = encoder_config(self.workspace, experiment.teacher.encoder)
        else:
            return None
        return self._stage("untrained", "initialize", {"encoder": encoder})

    def _teacher(self, role: str) -> Stage:
        if role in self.experiment.pretrained:
            encoder, method = self.experiment.pretrained[role]
            config = pretraining_config(self.workspace, encoder, method, "pretrain")
            return self._stage(role, "pretrain", config)
        return self._stage(role, "load", self.workspace.load_configs[role])

    def _pretrained(self, row: str, settings: PretrainedRow, rival: Stage) -> Stage:
        # Such a row requires such a teacher.
        encoder = cast("PretrainedTeacher", self.experiment.teacher).encoder
        key = f"compare.{row}.pretrain"
        config = pretraining_config(self.workspace, encoder, settings.pretrain, key)
        if settings.budget == "steps":
            return self._stage(row, "pretrain", config)
        return self._stage(row, "pretrain", {**config, "budget": "time"}, {"teacher": rival})

    def _controls(self, teachers: dict[str, Stage], distilled: Stage) -> dict[str, Stage]:
        experiment = self.experiment
        control, distill = experiment.control, experiment.distill
        student, method = experiment.student, experiment.pretrain
        assert control and distill and student and method  # without one there are no controls
        # Epochs of the distillation's batches would be other steps with the method's own batches.
        steps = distill.num_steps(len(self.workspace.train) // distill.batch_size)
        length = {"steps": steps, "epochs": None, "seed": distill.seed, "extend": None}
        method = method.model_copy(update=length)
        if control.optim:
            method = method.model_copy(update={"optim": control.optim})
        config = pretraining_config(self.workspace, student.encoder, method, "pretrain")
        trained = {role: stage for role, stage in teachers.items() if stage.kind == "pretrain"}
        # The steps follow from measured seconds, so they cannot be part of the hash.
        timed_stages = {
            "time": {"distilled": distilled},
            "total": {"distilled": distilled, **trained},
        }
        roles = {}
        for budget in control.budgets:
            role = CONTROL_ROLES[budget]
            timed = {**config, "budget": budget} if budget in timed_stages else config
            roles[role] = self._stage(role, "pretrain", timed, timed_stages.get(budget))
        return roles

    def _distill(self, teachers: dict[str, Stage], settings: DistillSettings, role: str) -> Stage:
        key = "distill" if role == "distilled" else f"compare.{role}"
        student = cast("NetworkSettings", self.experiment.student).encoder  # `distill` requires it
        encoder = encoder_config(self.workspace, student)
        config = {"encoder": encoder, **distillation_config(self.workspace, settings, key)}
        return self._stage(role, "distill", config, teachers)

    def _compressed(self, original: Stage, teachers: dict[str, Stage]) -> dict[str, Stage]:
        """Plan the compression steps: one chain of stages per variant of the student.

        Two variants whose steps have the same hash share one stage and one row of the table; the
        last step of a named variant takes the variant's name.
        """
        models: dict[str, Stage] = {}
        for variant, steps in self.experiment.compression_variants.items():
            inputs = _StepInputs(original=original, model=original, before=original)
            for row, settings in _expanded_rows(variant, steps):
                role = _numbered(row, models)
                stage = self._step(role, settings, inputs.parents(), teachers)
                # A stage that another variant already has is shared, row included.
                stage = next((s for s in models.values() if s.digest == stage.digest), stage)
                models[stage.role] = stage
                inputs.advance(STEPS[settings.kind], stage)
        return models

    def _step(self, role: str, settings: StepSettings, parents: Stages, teachers: Stages) -> Stage:
        config: dict[str, Any] = {"step": settings.model_dump(mode="json")}
        if STEPS[settings.kind].learns(settings):
            recovery = self.experiment.recovery
            config["distill"] = distillation_config(self.workspace, recovery, "distill")
            parents = {**parents, **(teachers if self.experiment.distill else {})}
        return self._stage(role, "compress", config, parents)

    def _stage(
        self,
        role: str,
        kind: str,
        config: dict[str, Any],
        parents: dict[str, Stage] | None = None,
    ) -> Stage:
        pinned = (config.get("method") or config.get("training") or {}).get("seed")
        if kind == "load":
            # Loading is deterministic: every seed of every experiment shares one stage.
            pinned = 0
        if kind == "evaluate":
            # A model that seeds share, and the raw pixels, are evaluated once.
            model = (parents or {}).get("model")
            pinned = model.seed if model else self.experiment.seeds[0]
        return Stage(
            role=role,
            kind=kind,
            config=with_plugins(config),
            fingerprint=self.workspace.train.fingerprint,
            seed=self.seed if pinned is None else pinned,
            parents=parents or {},
        )


def _models_differ_in_size(experiment: Experiment) -> bool:
    """Whether the experiment's models differ in size, not only in training."""
    return experiment.distill is not None or experiment.compressed is not None


def _is_timed(experiment: Experiment) -> bool:
    return experiment.measure.latency and _models_differ_in_size(experiment)


def _expanded_rows(
    variant: str, steps: Sequence[StepSettings]
) -> Iterator[tuple[str, StepSettings]]:
    """Rows of the table for the steps of a variant, and settings; a schedule is many steps.

    Args:
        variant: its name; empty for that of ``compress``, whose rows are named by the steps alone.
    """
    expanded = [part for settings in steps for part in STEPS[settings.kind].expand(settings)]
    for settings in expanded:
        row = STEPS[settings.kind].row(settings)
        if variant:
            row = variant if settings is expanded[-1] else f"{variant}_{row}"
        yield row, settings


def _numbered(name: str, used: Collection[str]) -> str:
    """``name``, or ``name_2``, ``name_3``, … where it is in use."""
    number = 2
    candidate = name
    while candidate in used:
        candidate, number = f"{name}_{number}", number + 1
    return candidate
