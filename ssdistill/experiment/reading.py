"""One YAML file, its parents and the command line's overrides → one frozen Experiment.

The only reader of configs. What YAML may hold is decided in
:mod:`ssdistill.experiment.yaml_text`, what may be written by pydantic alone.
"""

import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssdistill.errors import UserError, nearest, shortened
from ssdistill.experiment.overrides import plain_overrides
from ssdistill.experiment.references import resolve
from ssdistill.experiment.renamed_keys import with_new_keys
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import PretrainedTeacher, kind_alone
from ssdistill.experiment.yaml_text import DEEPEST, read_file, read_text, text_problem
from ssdistill.models.spec import EncoderSettings
from ssdistill.models.stems import has_small_stem
from ssdistill.settings.problems import describe
from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    SOURCES,
    STEPS,
    TEACHERS,
    Registry,
)

MOST_ANCESTORS = 20
"""Files that extend each other, one below the other."""
COMMENTED = re.compile(r"""(?!["'\[{])(.*\s)?\#""", re.X)
"""A value outside of quotes and brackets in which YAML would begin a comment."""
READER = "experiment/reading.py"
"""Where this file is in the package."""
STEM_SETTINGS = ("stem", "stem_stride", "stem_padding")


def load_experiment(path: str | Path, overrides: list[str] = ()) -> tuple[Experiment, list[str]]:
    """Read, compose, override and validate.

    Args:
        path: a YAML file; a name that is no file is looked up among the packaged configs.
        overrides: ``key.sub=value`` strings, or as :mod:`ssdistill.experiment.overrides`
            understands them.

    Returns:
        the experiment, and notices about settings an override made meaningless.

    Raises:
        UserError: listing every problem, with the nearest known name.
    """
    file = find_config(path)
    notices: list[str] = []
    tree = _compose(file, notices, (), {})
    for override in plain_overrides(overrides, options={}):
        tree = _merge(tree, with_new_keys(parse_override(override), notices), "", notices)
    tree = resolve(_complete(tree))
    try:
        return Experiment.model_validate(tree), notices
    except ValidationError as error:
        raise UserError(describe(file, error, Experiment)) from error


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``, the value read as YAML, in which # begins no comment.

    Raises:
        UserError: it has no ``=``, or a value that is no YAML.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    parts = re.split(r"[.\[]", key.replace("]", ""))
    shown = shortened(text, 100)
    if not equals or not all(parts):
        raise UserError(f"invalid override '{shown}'{_instead(text)}")
    if reason := text_problem(text):
        raise UserError(f"override '{shown}' {reason}")
    if len(parts) > DEEPEST:
        raise UserError(f"override '{shown}': nested more than {DEEPEST} keys deep")
    tree: Any = value
    if not COMMENTED.match(value):
        tree = read_text(value, f"override '{shown}'", ".".join(parts))
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _instead(word: str) -> str:
    """Suggest a remedy for a word without a key or without ``=``."""
    if word.endswith((".yaml", ".yml")):
        return "; one config is run at a time: name the other one in its 'extends'"
    remedy = "; write key.sub=value without blanks, such as pretrain.steps=100"
    return remedy if "=" in word else f"{remedy} (is an = missing?)"


def _complete(tree: dict[str, Any]) -> dict[str, Any]:
    """Each row of ``compare`` with the settings of ``distill``, or of ``pretrain``, that it
    leaves as they are; each of several teachers with those of ``teacher`` and ``pretrain``."""
    complete = dict(tree)
    teacher = tree.get("teacher")
    if isinstance(teacher, dict):
        complete["teacher"] = _complete_row(tree, teacher, "teacher")
        if tree.get("teachers") and teacher.keys() <= {"encoder"}:
            # The encoder of a single teacher may come from an extended file.
            del complete["teacher"]
    for section in ("compare", "teachers"):
        if isinstance(tree.get(section), dict):
            rows = tree[section].items()
            complete[section] = {name: _complete_row(tree, row, section) for name, row in rows}
    return complete


def _complete_row(tree: dict[str, Any], own: Any, section: str) -> Any:
    own = {} if own is None else own
    if section == "teachers" and isinstance(own, dict) and "kind" not in own:
        teacher = kind_alone(tree.get("teacher"))
        own = {**(teacher if isinstance(teacher, dict) else {}), **own}
    if isinstance(own, dict) and own.get("pretrain") is not None:
        own = {**own, "pretrain": kind_alone(own["pretrain"])}
        shared = {"pretrain": _without_length(tree.get("pretrain") or {}, own["pretrain"])}
        # No notices: every row would report that its method differs.
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
    packaged = Path(str(resources.files("ssdistill.configs")))
    file = Path(path).expanduser()
    for candidate in (file, packaged / path, packaged / f"{path}.yaml"):
        if _is_file(candidate):
            return candidate
    if os.path.isdir(file):
        raise UserError(f"{path}: is a folder; name a YAML file in it")
    known = sorted(str(p.relative_to(packaged)) for p in packaged.rglob("*.yaml"))
    name = shortened(path, 200)
    raise UserError(f"{name}: no such config file{nearest(name, known)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a name may be, say
        return False


def _compose(
    file: Path,
    notices: list[str],
    seen: tuple[Path, ...],
    composed: dict[Path, dict[str, Any]],
) -> dict[str, Any]:
    """The file's content over that of the files it extends.

    Args:
        seen: the files below it, each of which extends the next.
        composed: what is known of files that several others extend.
    """
    resolved = file.resolve()
    if resolved in seen:
        raise UserError(f"{file}: extends itself through {seen[-1].name}")
    if len(seen) > MOST_ANCESTORS:
        raise UserError(f"{file}: extends chain of more than {MOST_ANCESTORS} files")
    if resolved in composed:
        return composed[resolved]
    own = read_file(file)
    own = {} if own is None else own
    if not isinstance(own, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    own = with_new_keys(own, notices)
    parents, tree = own.pop("extends", None) or [], {}
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        shown = shortened(repr(parents))
        raise UserError(f"{file}: extends must name a file or a list of files (got {shown})")
    for parent in parents:
        parent = str(resolve({"extends": parent})["extends"])
        beside = file.parent / Path(parent).expanduser()
        try:
            parent_file = beside if _is_file(beside) else find_config(parent)
        except UserError as error:
            raise UserError(f"{file}: extends {error}") from None
        tree = _merge(
            tree, _compose(parent_file, notices, (*seen, resolved), composed), "", notices
        )
    # Packaged files drop settings of each other on purpose: no notices.
    composed[resolved] = _merge(tree, own, "", [] if _is_packaged(resolved) else notices)
    return composed[resolved]


def _is_packaged(file: Path) -> bool:
    """Whether a config belongs to ssdistill, installed or as a checkout."""
    folders = [folder for folder in file.parents if folder.name == "configs"]
    return any(
        (folder.parent / READER).is_file() or (folder.parent / "ssdistill" / READER).is_file()
        for folder in folders
    )


def _merge(base: dict, over: dict, section: str, notices: list[str]) -> dict[str, Any]:
    """Merge ``over`` into ``base``, mapping by mapping; other values of ``over`` replace.

    - A new ``kind`` (or the ``name`` of an encoder) drops settings that it does not have, with a
      notice unless ``over`` sets them itself; settings that both kinds have stay.
    - ``data: x`` is short for ``data: {kind: x}`` wherever kinds are chosen.
    - A mapping with item numbers changes single items of a list; a list replaces a list.
    """
    merged = dict(base)
    for key, reason in _foreign(base, over, section).items():
        del merged[key]
        if key not in over:
            notices.append(f"ignoring {section}.{key}: {reason}")
    for key, value in over.items():
        path = f"{section}.{key}" if section else str(key)
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


def _foreign(base: dict, over: dict, section: str) -> dict[str, str]:
    """Keys of ``base`` that mean nothing once ``over`` has chosen another kind, and why."""
    registry, kind, name = _registry_at(section), over.get("kind"), over.get("name")
    known = _settings_of(registry, kind) if registry and isinstance(kind, str) else None
    if known is not None and kind != base.get("kind"):
        unknown = [key for key in base if key not in known and key not in over]
        dropped = dict.fromkeys(unknown, f"not a setting of {section}.kind={kind}")
        # The network of one kind of teacher says nothing about that of another.
        if registry is TEACHERS and "encoder" in base and "encoder" not in unknown:
            dropped["encoder"] = f"it was set for another {section}.kind than {kind}"
        return dropped
    old_name = base.get("name", EncoderSettings().name)
    if section.endswith(".encoder") and isinstance(name, str) and name != old_name:
        return _of_other_network(base, old_name, name)
    return {}


def _settings_of(registry: Registry, kind: str) -> Iterable[str] | None:
    """Names of a kind's settings; None where there is no such kind."""
    if registry is TEACHERS and kind == PretrainedTeacher().kind:
        return PretrainedTeacher.model_fields
    return registry.schema(kind).model_fields if kind in registry.classes else None


def _of_other_network(base: dict, old_name: Any, name: str) -> dict[str, str]:
    """Settings of an encoder that another network cannot take over, and why."""
    dropped = {}
    if base.get("args"):
        dropped["args"] = f"they are arguments of {old_name}"
    if base.get("stem", "auto") != "native" and not has_small_stem(name):
        stem = [key for key in STEM_SETTINGS if key in base]
        dropped |= dict.fromkeys(stem, f"no small stem is known for {shortened(name)}")
    return dropped


def _merge_items(items: list, over: dict, section: str, notices: list[str]) -> list[Any]:
    """``compress.0.ratio=0.5`` changes one item of a list."""
    numbered = {str(i): item for i, item in enumerate(items)}
    for key in over:
        if str(key) not in numbered:
            extent = f"has items 0 to {len(items) - 1}" if items else "is an empty list"
            raise UserError(f"{section}.{key}: {section} {extent}")
    return list(_merge(numbered, {str(k): v for k, v in over.items()}, section, notices).values())


def _registry_at(section: str) -> Registry | None:
    """Whose kinds the mapping at this key holds."""
    if re.match(r"(distill|compare\.[^.]+)\.losses\.", section):
        return LOSSES
    if re.fullmatch(r"evaluate\.also\.[^.]+", section):
        return PROTOCOLS
    if re.fullmatch(r"compress\.\d+|plans\.[^.]+\.\d+", section):
        return STEPS
    if re.fullmatch(r"teacher|teachers\.[^.]+", section):
        return TEACHERS
    if re.fullmatch(r"((compare|teachers)\.[^.]+\.|teacher\.)?pretrain", section):
        return METHODS
    return SOURCES if section == "data" else None
