"""An experiment as a list of stages: which, made from which, in which order."""

from typing import Any

from ssdistill.chain.workspace import Workspace, resolve_recipes
from ssdistill.data.recipes import ViewRecipe, expand
from ssdistill.distill.pairing import resolve_pairs
from ssdistill.errors import UserError
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment import DistillSettings
from ssdistill.registry import LOSSES, METHODS, STEPS
from ssdistill.settings import Settings
from ssdistill.stages import Stage

CONTROL_ROLES = {"steps": "control", "time": "control_time", "total": "control_total"}
"""Role of the control at each budget."""


def plan(workspace: Workspace) -> list[Stage]:
    """Every stage of the experiment, parents first; what seeds share stands there once."""
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


def latency_stage(workspace: Workspace) -> Stage:
    """One measurement of all models together, those of the first seed."""
    planner = _Planner(workspace, workspace.experiment.seeds[0])
    return planner.latency(planner.models())


class _Planner:
    """Builds the stages of one seed."""

    def __init__(self, workspace: Workspace, seed: int):
        self.workspace, self.experiment, self.seed = workspace, workspace.experiment, seed

    def stages(self) -> list[Stage]:
        models = self.models()
        last = [self.latency(models)] if self.seed == self.experiment.seeds[0] else []
        return [*models.values(), *self.evaluations(models).values(), *last]

    def models(self) -> dict[str, Stage]:
        experiment = self.experiment
        models = {"untrained": self._initialize(), "teacher": self._teacher()}
        if experiment.distill is None:
            return models
        distilled = self._distill(models["teacher"], experiment.distill, "distilled")
        if experiment.control:
            models |= self._controls(models["teacher"], distilled)
        for row, settings in experiment.compare.items():
            models[row] = self._distill(models["teacher"], settings, row)
        # After its rivals: what is made from it follows.
        models["distilled"] = distilled
        models |= self._compressed(distilled, models["teacher"])
        return models

    def evaluations(self, models: dict[str, Stage]) -> dict[str, Stage]:
        """The teacher's comes first: the others are compared with its features."""
        settings = self.experiment.evaluate
        config = {
            "labels": settings is not None and self.workspace.source.has_labels,
            "evaluate": (settings or EvaluateSettings()).model_dump(mode="json"),
            "test": self.workspace.test.fingerprint,
        }
        teacher = self._stage("teacher", "evaluate", config, {"model": models["teacher"]})
        evaluations = {"teacher": teacher}
        for role, model in models.items():
            if role != "teacher":
                parents = {"model": model, "teacher": teacher}
                evaluations[role] = self._stage(role, "evaluate", config, parents)
        if config["labels"] and settings.pixels:
            evaluations["pixels"] = self._stage("pixels", "evaluate", config, {"teacher": teacher})
        return evaluations

    def latency(self, models: dict[str, Stage]) -> Stage:
        return self._stage("latency", "latency", {"batch_sizes": [1, 64]}, models)

    def _initialize(self) -> Stage:
        return self._stage("untrained", "initialize", {"encoder": self._encoder("student")})

    def _teacher(self) -> Stage:
        config = self._pretraining("teacher", self.experiment.pretrain)
        return self._stage("teacher", "pretrain", config)

    def _controls(self, teacher: Stage, distilled: Stage) -> dict[str, Stage]:
        control, distill = self.experiment.control, self.experiment.distill
        # Epochs of the distillation's batches would be other steps with the method's own batches.
        steps = distill.num_steps(len(self.workspace.train) // distill.batch_size)
        length = {"steps": steps, "epochs": None, "seed": distill.seed}
        method = self.experiment.pretrain.model_copy(update=length)
        if control.optim:
            method = method.model_copy(update={"optim": control.optim})
        config = self._pretraining("student", method)
        equal = self._stage("control", "pretrain", config)
        others = {
            "time": {"control": equal, "distilled": distilled},
            "total": {"control": equal, "distilled": distilled, "teacher": teacher},
        }
        roles = {}
        for budget in control.budgets:
            role = CONTROL_ROLES[budget]
            if budget == "steps":
                roles[role] = equal
            else:
                # The steps follow from measured seconds, so they cannot be part of the digest.
                timed = {**config, "budget": budget}
                roles[role] = self._stage(role, "pretrain", timed, others[budget])
        return roles

    def _distill(self, teacher: Stage, settings: DistillSettings, role: str) -> Stage:
        config = {"encoder": self._encoder("student"), **self._distillation(settings, role)}
        return self._stage(role, "distill", config, {"teacher": teacher})

    def _compressed(self, distilled: Stage, teacher: Stage) -> dict[str, Stage]:
        models: dict[str, Stage] = {}
        parent = distilled
        for settings in self.experiment.compress:
            step = STEPS[settings.kind]
            config: dict[str, Any] = {"step": settings.model_dump(mode="json")}
            parents = {"model": parent, "distilled": distilled, "teacher": teacher}
            if step.trains:
                config["distill"] = self._distillation(self.experiment.distill, "distilled")
            else:
                parents = {"model": parent}
            role = _numbered(step.makes, models)
            parent = models[role] = self._stage(role, "compress", config, parents)
        return models

    def _pretraining(self, network: str, method: Settings) -> dict[str, Any]:
        natural = METHODS[method.kind].recipes
        recipes = self._recipes(method.views, natural)
        if len(recipes) != len(natural):
            raise UserError(
                f"pretrain.views: {method.kind} takes {len(natural)} views, got {len(recipes)}"
            )
        if len({recipe.size for recipe in recipes}) > 1:
            raise UserError(f"pretrain.views: {method.kind} takes views of one size")
        return {
            "encoder": self._encoder(network),
            "method": method.model_dump(mode="json", exclude={"views"}),
            "views": [recipe.model_dump(mode="json") for recipe in recipes],
            "device": self._arithmetic(),
        }

    def _distillation(self, distill: DistillSettings, role: str) -> dict[str, Any]:
        losses = distill.losses.values()
        num_views = max(LOSSES[loss.kind].views for loss in losses)
        recipes = self._recipes(distill.views, ("strong",) * num_views)
        key = "distill" if role == "distilled" else f"compare.{role}"
        if len(recipes) < num_views:
            raise UserError(f"{key}.views: the losses take {num_views} views, got {len(recipes)}")
        size = self.workspace.image_size
        for name, loss in distill.losses.items():
            try:
                resolve_pairs(
                    loss.pairs or LOSSES[loss.kind].pairing, [r.size or size for r in recipes]
                )
            except UserError as error:
                raise UserError(f"{key}.losses.{name}.{error}") from None
        return {
            "training": distill.model_dump(mode="json", exclude={"views"}),
            "views": [recipe.model_dump(mode="json") for recipe in recipes],
            "device": self._arithmetic(),
        }

    def _encoder(self, network: str) -> dict[str, Any]:
        settings = getattr(self.experiment, network).encoder
        return self.workspace.build(settings).spec.model_dump(mode="json") | {
            "pretrained": settings.pretrained
        }

    def _recipes(self, wanted: Any, natural: tuple[str, ...]) -> tuple[ViewRecipe, ...]:
        return expand(resolve_recipes(wanted, natural, self.workspace.source))

    def _arithmetic(self) -> dict[str, str]:
        device = self.experiment.device
        return {"precision": device.precision, "memory_format": device.memory_format}

    def _stage(
        self,
        role: str,
        kind: str,
        config: dict[str, Any],
        parents: dict[str, Stage] | None = None,
    ) -> Stage:
        pinned = (config.get("method") or config.get("training") or {}).get("seed")
        if kind == "evaluate":
            # A shared model, and the pixels of the images, are judged once.
            pinned = parents["model"].seed if "model" in parents else self.experiment.seeds[0]
        return Stage(
            role=role,
            kind=kind,
            config=config,
            fingerprint=self.workspace.train.fingerprint,
            seed=self.seed if pinned is None else pinned,
            parents=parents or {},
        )


def _numbered(name: str, taken: dict[str, Any]) -> str:
    """``name``, or ``name_2``, ``name_3``, … where it is taken."""
    number = 2
    candidate = name
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate
