"""Go on with a finished training, from its last checkpoint, for more steps."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from ssdistill.chain.stages import Stage, without_paths
from ssdistill.errors import UserError, no_file
from ssdistill.experiment.sections import DistillSettings
from ssdistill.files import user_path
from ssdistill.record.metrics_file import METRICS_FILE
from ssdistill.record.run import load_run
from ssdistill.record.run_record import RUN_FILE, RunRecord
from ssdistill.settings.registry import METHODS
from ssdistill.train.loop import CHECKPOINT, LAST_CHECKPOINT
from ssdistill.train.optim import learning_rate
from ssdistill.train.settings import TrainSettings

KEY = "extend"
"""Of the settings of a training, and of the config of its stage."""
LENGTH = ("steps", "epochs", KEY)
"""Settings that may differ from those of the training that is extended."""
SEED_FOLDER = re.compile(r"s\d+")


def extension(settings: TrainSettings, key: str) -> dict[str, Any]:
    """What a stage's config says of the training that it extends; empty if it extends none.

    Args:
        key: of the settings in the config, for messages.

    Raises:
        UserError: no finished training is there.
    """
    if settings.extend is None:
        return {}
    folder = user_path(settings.extend)
    folder = folder.parent if SEED_FOLDER.fullmatch(folder.name) else folder
    found = sorted(folder.glob(f"s*/{RUN_FILE}"))
    if not found:
        remedy = "name the folder of a stage, such as runs/stages/pretrain-1234abcd"
        raise UserError(f"{key}.{KEY}: {no_file(folder, remedy)}")
    digest = load_run(found[0].parent).digest
    return {KEY: {"path": str(folder), "digest": digest}}


def check_extension(stage: Stage, settings: TrainSettings, num_steps: int) -> str | None:
    """Check that a stage can extend what it names; say where it goes on.

    Returns:
        None if it extends nothing.

    Raises:
        UserError: another training, one that is not finished, has no checkpoint, or is no shorter.
    """
    if KEY not in stage.config:
        return None
    folder = _folder(stage)
    name = f"{stage.role}.{KEY}={folder}"
    record = load_run(folder) if (folder / RUN_FILE).is_file() else None
    if record is None or record.status != "finished":
        raise UserError(f"{name}: no finished training of seed {stage.seed}; finish it first")
    if different := _difference(stage, record):
        raise UserError(
            f"{name}: was trained with another {different}; extend it with the same settings, or "
            "start from its weights with encoder.weights"
        )
    if not (folder / LAST_CHECKPOINT).is_file():
        raise UserError(
            f"{name}: has no {LAST_CHECKPOINT}, which keep_checkpoints=true keeps; start from its "
            "weights with encoder.weights"
        )
    taken = int(record.metrics.get("train/steps") or 0)
    if taken >= num_steps:
        raise UserError(f"{name}: has taken {taken} steps already; set more than that")
    before = learning_rate(settings.optim, taken - 1, taken)
    after = learning_rate(settings.optim, taken, num_steps)
    said = f"{stage.role}, seed {stage.seed}: goes on at step {taken} of {num_steps}"
    if settings.optim.schedule == "constant":
        return said
    return (
        f"{said}; its learning rate ended at {before:.3g} and is now {after:.3g}, that of the "
        f"schedule ({settings.optim.schedule}) over {num_steps} steps"
    )


def extensions(stages: Iterable[Stage], num_images: int) -> list[str]:
    """Where each stage that extends a training goes on, one line each.

    Args:
        num_images: for training.

    Raises:
        UserError: as :func:`check_extension`.
    """
    lines = []
    for stage in stages:
        if KEY in stage.config:
            settings = training_settings(stage)
            num_steps = settings.num_steps(num_images // settings.batch_size)
            lines += filter(None, [check_extension(stage, settings, num_steps)])
    return lines


def begin_extended(stage: Stage, folder: Path, also: str) -> None:
    """Put the checkpoint and the curves of the extended training into a stage that begins.

    Args:
        also: another file that only the first step writes.
    """
    if KEY not in stage.config or (folder / CHECKPOINT).exists():
        return
    source = _folder(stage)
    copies = {METRICS_FILE: METRICS_FILE, also: also, LAST_CHECKPOINT: CHECKPOINT}
    for name, copy in copies.items():
        if (source / name).is_file():
            partial = folder / f"{copy}.partial"
            shutil.copyfile(source / name, partial)
            os.replace(partial, folder / copy)


def training_settings(stage: Stage) -> TrainSettings:
    """The settings of a stage that pretrains or distills."""
    if stage.kind == "distill":
        return DistillSettings.model_validate(stage.config["training"])
    method = stage.config["method"]
    return cast("TrainSettings", METHODS.schema(method["kind"]).model_validate(method))


def _folder(stage: Stage) -> Path:
    return Path(stage.config[KEY]["path"]) / f"s{stage.seed}"


def _difference(stage: Stage, record: RunRecord) -> str | None:
    """The first setting, by its dotted key, in which the trainings differ beside their length."""
    if record.stage != stage.kind:
        return f"stage ({record.stage})"
    return _first_difference(_without_length(record.config), _without_length(stage.config))


def _without_length(config: dict[str, Any]) -> dict[str, Any]:
    config = without_paths(config)
    trained = {
        section: {key: value for key, value in config[section].items() if key not in LENGTH}
        for section in ("method", "training")
        if section in config
    }
    return {key: value for key, value in config.items() if key != KEY} | trained


def _first_difference(one: Any, other: Any, key: str = "") -> str | None:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            inside = f"{key}.{name}" if key else name
            if found := _first_difference(one.get(name), other.get(name), inside):
                return found
        return None
    # Records hold lists where settings have tuples.
    same = list(one) == list(other) if isinstance(one, list | tuple) else one == other
    return None if same else key
