"""One YAML file, its parents and the command line's overrides → one frozen Experiment.

The only reader of YAML. OmegaConf loads and merges (it refuses duplicate keys and reads 1e-3 as
a number); pydantic is the only judge of what may be written.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from ssdistill.config_errors import describe
from ssdistill.data.mixing import MixSettings
from ssdistill.distill.interpolate import InterpolateSettings
from ssdistill.errors import UserError, nearest
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.models.backbones import EncoderSettings
from ssdistill.record.tracker import TrackingSettings
from ssdistill.record.verdict import ClaimSettings
from ssdistill.registry import LOSSES, METHODS, SOURCES, STEPS, Registry
from ssdistill.settings import NonNegative, NonNegativeInt, Settings
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import DeviceSettings, TrainSettings


def _kind_alone(value: Any) -> Any:
    """``data: cifar10`` is short for ``data: {kind: cifar10}``."""
    return {"kind": value} if isinstance(value, str) else value


def _own_row(name: str) -> str:
    reserved = {"pixels", "untrained", "teacher", "control", "distilled"}
    reserved |= {step.makes for step in STEPS.classes.values()}
    # pruned_2, control_time, …
    if name.split("_")[0] in reserved:
        raise ValueError(f"'{name}' is a name the chain gives to its own models")
    return name


RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), AfterValidator(_own_row)]


class NetworkSettings(Settings):
    """One network of the chain."""

    encoder: EncoderSettings = EncoderSettings()


class ControlSettings(Settings):
    """The student's encoder trained by the teacher's method, without a teacher.

    Args:
        budgets: what the control gets: ``steps``, as many as the distillation takes; ``time``,
            as many as fit in the seconds the distillation takes; ``total``, as many as fit in
            the seconds teacher and distillation take together.
        optim: optimizer, where it differs from the teacher's.
    """

    budgets: tuple[Literal["steps", "time", "total"], ...] = ("steps",)
    optim: OptimSettings | None = None


class DistillSettings(TrainSettings):
    """Distillation: the losses by name, and how long.

    Args:
        losses: each with its ``kind``, ``weight`` and settings.
        mix: MixUp or CutMix of the views, the same for both networks; null for none.
        interpolate: move the student's weights towards the teacher's; null for not.
    """

    losses: Annotated[dict[str, LOSSES.union], Field(min_length=1)]
    mix: MixSettings | None = None
    interpolate: InterpolateSettings | None = None

    @model_validator(mode="after")
    def _free_names(self) -> "DistillSettings":
        # loss/total and grad/norm are those of all losses together.
        taken = [name for name in ("total", "norm") if name in self.losses]
        if taken:
            raise ValueError(f"losses: '{taken[0]}' cannot be a loss's name, a metric has it")
        return self


class PaperSettings(Settings):
    """What the experiment claims, and whose claim it is.

    Args:
        claims: numbers (``profile: paper`` only) or orderings (any profile) to check.
        title, arxiv, table: where the claims come from, if from a paper.
        deviations: how the experiment differs from it.
    """

    claims: tuple[ClaimSettings, ...] = ()
    title: str | None = None
    arxiv: str | None = None
    table: str | None = None
    deviations: tuple[str, ...] = ()


class Experiment(Settings):
    """Everything a run does, in one frozen value.

    Args:
        schema_version: written ``schema``; version of this vocabulary.
        name: names the report and the W&B group.
        profile: ``paper`` runs may be compared with a paper's numbers, others never.
        seeds: every stage runs once per seed, unless it fixes its own.
        data: where the pictures come from.
        teacher, student: the two networks.
        pretrain: how the teacher (and the control) learns.
        control: the student without a teacher; null for none.
        distill: how the student learns from the teacher; null stops after the teacher.
        compare: further students by the name of their row, each with what differs from
            ``distill``; ``losses`` given there stand in place of those of ``distill``.
        compress: steps applied to the distilled student, in order.
        evaluate: probes, the only part that reads labels; null leaves labels alone.
        tracking: W&B and TensorBoard.
        device: hardware, number format.
        checkpoint_seconds: at most this much training is lost to a kill.
        paper: claims to check, with title and arXiv id where they are a paper's.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    profile: Literal["paper", "reduced", "smoke"] = "reduced"
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    data: Annotated[SOURCES.union, BeforeValidator(_kind_alone)]
    teacher: NetworkSettings = NetworkSettings()
    student: NetworkSettings
    pretrain: Annotated[METHODS.union, BeforeValidator(_kind_alone)]
    control: ControlSettings | None = ControlSettings()
    distill: DistillSettings | None = None
    compare: dict[RowName, DistillSettings] = Field(default={})
    compress: tuple[Annotated[STEPS.union, BeforeValidator(_kind_alone)], ...] = ()
    evaluate: EvaluateSettings | None = EvaluateSettings()
    tracking: TrackingSettings = TrackingSettings()
    device: DeviceSettings = DeviceSettings()
    checkpoint_seconds: NonNegative = 20.0
    paper: PaperSettings | None = None

    @model_validator(mode="after")
    def _compared_with_something(self) -> "Experiment":
        if self.compare and self.distill is None:
            raise ValueError("compare: needs a distill section to compare with")
        return self


def load_experiment(path: str | Path, overrides: list[str] = ()) -> tuple[Experiment, list[str]]:
    """Read, compose, override and validate.

    Args:
        path: a YAML file; a name that is no file is looked up among the packaged configs.
        overrides: ``key.sub=value`` strings.

    Returns:
        the experiment, and notices about settings an override made meaningless.

    Raises:
        UserError: listing every problem, with the nearest known name.
    """
    file = find_config(path)
    notices: list[str] = []
    tree = _compose(file, notices, seen=())
    for override in overrides:
        if "=" not in override:
            raise UserError(f"'{override}' is no override; write key.sub=value")
        try:
            addition = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"override '{override}': {_first_line(error)}") from error
        tree = _merge(tree, addition, "", notices)
    tree = _complete_compared(tree)
    try:
        return Experiment.model_validate(tree), notices
    except ValidationError as error:
        raise UserError(describe(file, error, Experiment)) from error


def _complete_compared(tree: dict[str, Any]) -> dict[str, Any]:
    """Each student of ``compare`` with the settings of ``distill`` that it leaves as they are."""
    shared, compared = tree.get("distill"), tree.get("compare")
    if not isinstance(shared, dict) or not isinstance(compared, dict):
        return tree
    # A length in the one is meant to replace the length of the other, in whichever unit.
    lengths = {"steps", "epochs"}
    complete = {}
    for name, own in compared.items():
        own = own or {}
        dropped = lengths if isinstance(own, dict) and lengths & own.keys() else set()
        kept = {key: value for key, value in shared.items() if key not in dropped}
        complete[name] = {**kept, **own} if isinstance(own, dict) else own
    return {**tree, "compare": complete}


def find_config(path: str | Path) -> Path:
    """The file ``path`` names: as given, or among the packaged configs, with or without .yaml."""
    packaged = resources.files("ssdistill.configs")
    for candidate in (Path(path), Path(str(packaged)) / path, Path(str(packaged)) / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(str(packaged))) for p in Path(str(packaged)).rglob("*.yaml"))
    raise UserError(f"{path}: no such config file{nearest(str(path), known)}")


def _compose(file: Path, notices: list[str], seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's content over that of the files it extends."""
    if file.resolve() in seen:
        raise UserError(f"{file}: extends itself, by way of {seen[-1].name}")
    try:
        loaded = OmegaConf.load(file)
        if not isinstance(loaded, DictConfig):
            raise UserError(f"{file}: a config is a mapping of keys to values")
        own = OmegaConf.to_container(loaded)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {_first_line(error)}") from error
    parents = own.pop("extends", None) or []
    tree: dict[str, Any] = {}
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise UserError(f"{file}: extends names a file or a list of files (got {parents!r})")
    for parent in parents:
        beside = file.parent / parent
        parent_file = beside if beside.is_file() else find_config(parent)
        tree = _merge(tree, _compose(parent_file, notices, (*seen, file.resolve())), "", notices)
    return _merge(tree, own, "", [])


def _merge(base: dict, over: dict, where: str, notices: list[str]) -> dict[str, Any]:
    """``over`` over ``base``; what only the old kind (or network) knew is left out, aloud."""
    merged = dict(base)
    for key, reason in _foreign(base, over, where).items():
        del merged[key]
        if key not in over:
            notices.append(f"{where}.{key}: left out, {reason}")
    for key, value in over.items():
        path = f"{where}.{key}" if where else str(key)
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, dict) and _registry_at(path):
            old = _kind_alone(old)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value, path, notices)
        elif isinstance(old, list) and isinstance(value, dict):
            merged[key] = _merge_items(old, value, path, notices)
        else:
            merged[key] = value
    return merged


def _foreign(base: dict, over: dict, where: str) -> dict[str, str]:
    """Keys of ``base`` that mean nothing once ``over`` has chosen another kind, and why."""
    registry, kind, name = _registry_at(where), over.get("kind"), over.get("name")
    reason, keys = "", []
    if registry and kind in registry.classes and kind != base.get("kind"):
        known = registry.schema(kind).model_fields
        reason, keys = (
            f"{where}.kind={kind} has no such setting",
            [k for k in base if k not in known and k not in over],
        )
    elif where.endswith(".encoder") and name and name != base.get("name"):
        reason, keys = f"it was meant for {base.get('name')}", [k for k in base if k != "name"]
    return dict.fromkeys(keys, reason)


def _merge_items(items: list, over: dict, where: str, notices: list[str]) -> list[Any]:
    """``compress.0.ratio=0.5`` changes one item of a list."""
    numbered = {str(i): item for i, item in enumerate(items)}
    for key in over:
        if str(key) not in numbered:
            raise UserError(f"{where}.{key}: {where} has items 0 to {len(items) - 1}")
    return list(_merge(numbered, {str(k): v for k, v in over.items()}, where, notices).values())


def _registry_at(where: str) -> Registry | None:
    """Whose kinds the mapping at this key holds."""
    if re.match(r"(distill|compare\.[^.]+)\.losses\.", where):
        return LOSSES
    if where.startswith("compress."):
        return STEPS
    return {"data": SOURCES, "pretrain": METHODS}.get(where)


def _first_line(error: Exception) -> str:
    """A parser's complaint on one line, its position kept."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error)
    return " ".join(str(text).split()) + (f" (line {mark.line + 1})" if mark else "")
