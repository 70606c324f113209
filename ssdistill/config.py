"""One YAML file, its parents and the command line's overrides → one frozen Experiment.

The only reader of YAML. OmegaConf loads and merges (it refuses duplicate keys and reads 1e-3 as
a number); pydantic is the only judge of what may be written.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from ssdistill.config_errors import describe
from ssdistill.errors import UserError, nearest
from ssdistill.experiment import Experiment
from ssdistill.overrides import plain_overrides
from ssdistill.registry import LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS, TEACHERS, Registry
from ssdistill.sections import kind_alone


def load_experiment(path: str | Path, overrides: list[str] = ()) -> tuple[Experiment, list[str]]:
    """Read, compose, override and validate.

    Args:
        path: a YAML file; a name that is no file is looked up among the packaged configs.
        overrides: ``key.sub=value`` strings, or as :mod:`ssdistill.overrides` understands them.

    Returns:
        the experiment, and notices about settings an override made meaningless.

    Raises:
        UserError: listing every problem, with the nearest known name.
    """
    file = find_config(path)
    notices: list[str] = []
    tree = _compose(file, notices, seen=())
    for override in plain_overrides(overrides, options={}):
        tree = _merge(tree, parse_override(override), "", notices)
    tree = _complete(tree)
    try:
        return Experiment.model_validate(tree), notices
    except ValidationError as error:
        raise UserError(describe(file, error, Experiment)) from error


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``, the value read as YAML.

    Raises:
        UserError: it has no ``=``, or a value that is no YAML.
    """
    if "=" not in text:
        raise UserError(f"'{text}' is no override; write key.sub=value")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([text]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"override '{text}': {_first_line(error)}") from error


def validated(schema: type[BaseModel], values: Any, name: str) -> Any:
    """Settings outside of a config file.

    Raises:
        UserError: one line with every problem, each key below ``name``.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = describe(Path(name), error, schema).splitlines()[1:]
        raise UserError("; ".join(f"{name}.{problem.strip()}" for problem in problems)) from None


def _complete(tree: dict[str, Any]) -> dict[str, Any]:
    """Each row of ``compare`` with the settings of ``distill``, or of ``pretrain``, that it
    leaves as they are; each of several teachers with those of ``teacher`` and ``pretrain``."""
    complete = dict(tree)
    teacher = tree.get("teacher")
    if isinstance(teacher, dict):
        complete["teacher"] = _complete_row(tree, teacher, "teacher")
        if tree.get("teachers") and teacher.keys() <= {"encoder"}:
            # A file that this one extends may have given the encoder of a single teacher.
            del complete["teacher"]
    for section in ("compare", "teachers"):
        if isinstance(tree.get(section), dict):
            rows = tree[section].items()
            complete[section] = {name: _complete_row(tree, row, section) for name, row in rows}
    return complete


def _complete_row(tree: dict[str, Any], own: Any, section: str) -> Any:
    own = {} if own is None else own
    if section == "teachers" and isinstance(own, dict) and "kind" not in own:
        own = {**(tree.get("teacher") or {}), **own}
    if isinstance(own, dict) and own.get("pretrain") is not None:
        own = {**own, "pretrain": kind_alone(own["pretrain"])}
        shared = {"pretrain": _without_length(tree.get("pretrain") or {}, own["pretrain"])}
        # Aloud it would be said of every row that its method differs.
        return _merge(shared, own, "", [])
    if section == "compare" and isinstance(own, dict) and isinstance(tree.get("distill"), dict):
        return {**_without_length(tree["distill"], own), **own}
    return own


def _without_length(shared: Any, own: Any) -> Any:
    """A length in ``own`` is meant to replace the length in ``shared``, in whichever unit."""
    lengths = {"steps", "epochs"}
    if not isinstance(shared, dict) or not isinstance(own, dict) or not lengths & own.keys():
        return shared
    return {key: value for key, value in shared.items() if key not in lengths}


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
            old = kind_alone(old)
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
    if re.fullmatch(r"evaluate\.also\.[^.]+", where):
        return PROTOCOLS
    if re.fullmatch(r"compress\.\d+|plans\.[^.]+\.\d+", where):
        return STEPS
    if where == "teacher" or where.startswith("teachers."):
        return TEACHERS if where.count(".") < 2 else None
    return {"data": SOURCES, "pretrain": METHODS}.get(where)


def _first_line(error: Exception) -> str:
    """A parser's complaint on one line, its position kept."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error)
    return " ".join(str(text).split()) + (f" (line {mark.line + 1})" if mark else "")
