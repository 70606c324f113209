"""Contents of run.json, and reading it, including older versions."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ssdistill.errors import UserError, no_file
from ssdistill.settings.wording import problem_text

SCHEMA = 2
"""Raised when a field changes its meaning; :data:`UPGRADES` says how older records are read."""
RUN_FILE = "run.json"
Status = Literal["running", "finished", "failed", "interrupted"]
Number = int | bool | Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class RunRecord:
    """Contents of run.json.

    Attributes:
        stage: ``pretrain``, ``distill``, …; kind: the method, losses or step of the stage.
        role: what its model is called in the tables: ``teacher``, ``distilled``, …
        name: the experiment.
        digest: identity of the stage, seed excluded.
        group: what the runs of one experiment have in common, for W&B.
        profile: ``paper``, ``reduced`` or ``smoke``.
        columns: short facts to group runs by, such as ``losses`` and ``student``.
        started: UTC time of the first start; wall_seconds: time spent, over all resumes.
        fingerprint: sha256 of the data.
        parents: by role (``teacher``, ``student``), e.g. ``{"digest": …, "sha256": …}``.
        artifacts: by name, ``{"file": relative path, "sha256": …}``.
        metrics: the final numbers; reason: why it failed or stopped.
        metrics_sha256: of metrics.jsonl once it is finished; empty in records of versions that
            noted none.
        checksum: sha256 of everything else, see :func:`checksum_of`; empty until it is finished,
            and in records of versions that had none.
    """

    stage: str
    digest: str
    seed: int
    kind: str = ""
    role: str = ""
    name: str = ""
    group: str = ""
    profile: str = "reduced"
    columns: dict[str, str | int] = field(default_factory=dict)
    status: Status = "running"
    started: str = ""
    wall_seconds: float = 0.0
    resumed: int = 0
    reason: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    fingerprint: str | None = None
    parents: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    metrics_sha256: str = ""
    checksum: str = ""


def checksum_of(content: dict[str, Any]) -> str:
    """sha256, in hexadecimal, of what run.json holds beside its checksum, in whatever order."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def load_run(folder: Path | str) -> RunRecord:
    """Read run.json; what an older version wrote is given in the terms of this one.

    Raises:
        UserError: there is none, it is damaged, or a later version wrote it.
    """
    path = Path(folder) / RUN_FILE
    content = _object(path)
    schema = content.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise UserError(
            f"{path}: schema {schema!r}, this version reads 1 to {SCHEMA}; "
            f"install the ssdistill that wrote it, or {_remedy(path)}"
        )
    if content.get("checksum", "") not in ("", checksum_of(content)):
        raise UserError(f"{path}: checksum mismatch; {_remedy(path)}")
    for version in range(schema, SCHEMA):
        content = UPGRADES[version](content)
    field_names = {f.name for f in fields(RunRecord)}
    try:
        _Content.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: not a run record ({_first(error)}); {_remedy(path)}") from None
    return RunRecord(**{key: value for key, value in content.items() if key in field_names})


def role_of(folder: Path | str) -> str:
    """Role of a run's model; empty if unknown.

    Of a folder that may be anything: no record is no error here.
    """
    try:
        content = _object(Path(folder) / RUN_FILE)
    except UserError:
        return ""
    role = content.get("role", content.get("kind") if content.get("schema", 1) == 1 else None)
    return role if isinstance(role, str) else ""


def kind_of(config: dict[str, Any]) -> str:
    """The method, losses, step or teacher that the configuration of a stage names."""
    for section in ("method", "step", "teacher"):
        if isinstance(kind := _nested(config, section, "kind"), str):
            return kind
    losses = _nested(config, "training", "losses")
    losses = losses.values() if isinstance(losses, dict) else ()
    kinds = [loss.get("kind") for loss in losses if isinstance(loss, dict)]
    return "+".join(dict.fromkeys(kind for kind in kinds if isinstance(kind, str)))


def _upgraded_from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 wrote the role where the kind belongs."""
    config = content.get("config")
    kind = kind_of(config) if isinstance(config, dict) else ""
    role = content.get("kind", "")
    return {**content, "schema": 2, "role": role, "kind": kind}


UPGRADES = {1: _upgraded_from_1}
"""By the schema they read, to the next one."""


def _nested(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(no_file(path, "name the folder of a run")) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "empty"
        raise UserError(f"{path}: not JSON ({reason}); {_remedy(path)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a run record (not a JSON object); {_remedy(path)}")
    return content


def _remedy(path: Path) -> str:
    return f"move the folder {path.parent} away to rerun it"


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"] if part not in ("int", "bool", "float"))
    return f"{key}: {problem_text(first)}"


class _Part(BaseModel, extra="ignore", strict=True):
    """Part of a record as a file may hold it; unknown keys are passed over."""


class _Git(_Part):
    sha: str | None = None
    dirty: bool | None = None


class _Hardware(_Part):
    cpu: str | None = None
    cores: int | None = None
    gpus: list[str] | None = None


class _Provenance(_Part):
    git: _Git | None = None
    packages: dict[str, str] | None = None
    hardware: _Hardware | None = None
    python: str | None = None


class _Artifact(_Part):
    file: str
    sha256: str


class _Content(_Part):
    """The fields of :class:`RunRecord`, ``schema`` apart."""

    stage: str
    digest: str
    seed: int
    kind: str = ""
    role: str = ""
    name: str = ""
    group: str = ""
    profile: str = ""
    columns: dict[str, str | int] = {}
    status: Status = "running"
    started: str = ""
    wall_seconds: Number = 0.0
    resumed: int = 0
    reason: str | None = None
    metrics: dict[str, Number | None] = {}
    fingerprint: str | None = None
    parents: dict[str, dict[str, Any]] = {}
    artifacts: dict[str, _Artifact] = {}
    config: dict[str, Any] = {}
    provenance: _Provenance = _Provenance()
    metrics_sha256: str = ""
    checksum: str = ""
