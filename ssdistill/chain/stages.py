"""Stages: cached units of work, run once, resumed if interrupted, shared by experiments.

A stage is known by a hash of what it does, of what it is made from and of the data; the seed
is kept apart. Its folder is ``<root>/stages/<kind>-<digest8>/s<seed>``: the same work wanted by
another experiment is found there, changed work gets another folder.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from ssdistill.chain.grouping import experiment_columns
from ssdistill.errors import DamagedFile, UserError, shortened
from ssdistill.experiment.renamed_keys import with_released_deviations
from ssdistill.experiment.schema import Experiment
from ssdistill.record.run_record import RUN_FILE, SCHEMA, RunRecord, Status, load_run

VERSIONS = {
    "initialize": 1,
    "load": 1,
    "pretrain": 3,
    "distill": 2,
    "compress": 4,
    "evaluate": 6,
    "latency": 2,
}
"""Raised whenever the code of a kind changes what comes out, so that old results are not reused."""


@dataclass(frozen=True)
class Stage:
    """One node of the plan.

    Attributes:
        role: what it is in its experiment, e.g. ``teacher``; no part of the identity.
        kind: which work, a key of :data:`VERSIONS`.
        config: the settings that decide what comes out, ready for JSON.
        parents: the stages it is made from, by the part they play.
        fingerprint: of the training images.
        seed: of everything random in it.
    """

    role: str
    kind: str
    config: dict[str, Any]
    fingerprint: str
    seed: int
    parents: dict[str, "Stage"] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 over work, parents and data, in hexadecimal; the seed is not in it."""
        identity = {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            "config": without_paths(self.config),
            "parents": {name: parent.digest for name, parent in self.parents.items()},
            "fingerprint": self.fingerprint,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Where the stage lives under the runs folder ``root``."""
        return root / "stages" / f"{self.kind}-{self.digest[:8]}" / f"s{self.seed}"

    def record(self, root: Path) -> RunRecord | None:
        """Its record, or None where it was never started."""
        folder = self.folder(root)
        if not os.path.lexists(folder / RUN_FILE):
            return None
        if not (folder / RUN_FILE).is_file():
            raise DamagedFile(folder / RUN_FILE, "not a file")
        try:
            record = load_run(folder)
        except (UserError, RecursionError, TypeError) as error:
            if _is_of_later_version(folder / RUN_FILE):
                raise
            raise DamagedFile(folder / RUN_FILE, _reason(error)) from error
        if problem := _problem(record):
            raise DamagedFile(folder / RUN_FILE, problem)
        if record.digest != self.digest:
            raise UserError(f"{folder}: holds a stage with a different hash; move it away")
        if record.seed != self.seed:
            raise UserError(f"{folder}: holds a stage of seed {record.seed}; move it away")
        return record

    def written(self, root: Path) -> RunRecord:
        """Its record, which must be there: other stages or tables read it.

        Raises:
            UserError: it is not there any more.
        """
        if record := self.record(root):
            return record
        raise UserError(
            f"{self.folder(root)}: deleted while the run needed it; run the same command again to "
            "recompute it"
        )

    def status(self, root: Path) -> str:
        """``finished``, ``interrupted``, ``failed``, ``running``, ``damaged`` or ``missing``."""
        try:
            record = self.record(root)
        except DamagedFile:
            return "damaged"
        return record.status if record else "missing"


STORED = re.compile(r"weights/[0-9a-f]{16}$")
"""End of the path of weights that a program stored, whose name is their hash: in any runs folder,
they are the same."""


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A stage's config without where the weights or the training lie that it starts from."""
    encoder = config.get("encoder", {})
    hashed = dict(config)
    if weights := encoder.get("weights"):
        hashed["encoder"] = {**encoder, "weights": _without_path(weights)}
    if extended := config.get("extend"):
        hashed["extend"] = _without_path(extended)
    teacher = config.get("teacher")
    if isinstance(teacher, dict) and (name := STORED.search(str(teacher.get("path", "")))):
        hashed["teacher"] = {**teacher, "path": name[0]}
    return hashed


def _without_path(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "path"}


@dataclass(frozen=True)
class Identity:
    """What records and loggers call the experiment a stage runs for.

    Attributes:
        name, profile: the experiment's.
        digest: sha256 of its whole configuration.
        tags: what to find it by in W&B.
        group_digest: sha256 of the configuration without its seeds: more seeds join the group.
        columns: what all its runs share, to group them by.
    """

    name: str
    profile: str
    digest: str
    tags: tuple[str, ...] = ()
    group_digest: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> "Identity":
        """The identity of an experiment; tracking and hardware are no part of it."""
        aside = {"tracking", "device", "checkpoint_seconds", "keep_checkpoints"}
        config = experiment.model_dump(mode="json", exclude=aside)
        config = with_released_deviations(config)
        digest = _sha256(config)
        group_digest = _sha256({key: value for key, value in config.items() if key != "seeds"})
        data, paper = experiment.data.kind, experiment.paper
        networks = (experiment.student, *experiment.all_teachers.values())
        encoders = (getattr(network, "encoder", None) for network in networks)
        names = (encoder.name for encoder in encoders if encoder is not None)
        tags = (data, experiment.profile, *list(names)[:1])
        arxiv = (paper.arxiv,) if paper and paper.arxiv else ()
        return cls(
            experiment.name,
            experiment.profile,
            digest,
            (*tags, *arxiv),
            group_digest,
            experiment_columns(experiment),
        )

    @property
    def folder(self) -> str:
        """Name of the experiment's folder."""
        return f"{self.name}-{self.digest[:8]}"

    @property
    def group(self) -> str:
        """What its runs have in common in W&B, whatever their seeds."""
        return f"{self.name}-{(self.group_digest or self.digest)[:8]}"


def _sha256(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _is_of_later_version(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["schema"] > SCHEMA
    except (OSError, LookupError, RecursionError, TypeError, ValueError):
        return False


def _reason(error: Exception) -> str:
    """What :func:`ssdistill.record.run.load_run` says, without the path."""
    return str(error).partition(": ")[2] or str(error)


def _problem(record: RunRecord) -> str | None:
    """Why a record cannot be one that this program wrote; None if it can."""
    if record.status not in get_args(Status):
        return f"status {shortened(record.status)!r}"
    mappings = (record.metrics, record.parents, record.artifacts, record.config, record.provenance)
    if not all(isinstance(value, dict) for value in mappings):
        return "a section that is not a mapping"
    if not all(isinstance(value, int | float | None) for value in record.metrics.values()):
        return "a metric that is not a number"
    if not isinstance(record.wall_seconds, int | float) or not isinstance(record.resumed, int):
        return "a time that is not a number"
    entries = record.artifacts.values()
    if not all(isinstance(entry, dict) and {"file", "sha256"} <= entry.keys() for entry in entries):
        return "an artifact without file or sha256"
    return None
