"""One YAML file, its parents and the command line's overrides → one frozen Experiment.

The only reader of configs. What YAML may hold is decided in
:mod:`ssdistill.experiment.yaml_text`, what wins in :mod:`ssdistill.experiment.merging`, and what
may be written by pydantic alone.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError, nearest, no_file, shortened
from ssdistill.experiment.merging import merge
from ssdistill.experiment.overrides import plain_overrides
from ssdistill.experiment.references import resolve
from ssdistill.experiment.renamed_keys import with_new_keys
from ssdistill.experiment.row_inheritance import complete_rows
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.yaml_text import DEEPEST, read_file, read_text, text_problem
from ssdistill.files import user_path
from ssdistill.settings.problems import of_file

MOST_ANCESTORS = 20
"""Files that extend each other, one below the other."""
COMMENTED = re.compile(r"""(?!["'\[{])(.*\s)?\#""", re.X)
"""A value outside of quotes and brackets in which YAML would begin a comment."""
MARKS = re.compile(r"[|>,;:*&!%@`?-]+")
"""A value of punctuation, such as a separator, which YAML would read as an indicator."""
READER = "experiment/reading.py"
"""Where this file is in the package."""


def load_experiment(
    path: str | Path | Mapping[str, Any], overrides: Sequence = ()
) -> tuple[Experiment, list[str]]:
    """Read, compose, override and validate.

    Args:
        path: a YAML file; a name that is no file is looked up among the packaged configs; or a
            mapping of what a file in the current folder would say.
        overrides: ``key.sub=value`` strings, or as :mod:`ssdistill.experiment.overrides`
            understands them.

    Returns:
        the experiment, and notices about settings an override made meaningless.

    Raises:
        UserError: listing every problem, with the nearest known name.
    """
    written = read_config(path, overrides)
    return written.experiment(), written.notices


@dataclass(frozen=True)
class Written:
    """What a file, its parents and overrides say.

    Attributes:
        file: the config.
        tree: all of them merged, as they are written.
        notices: about settings an override made meaningless.
        words: of a command line that says the same: the config as it was named, and overrides.
    """

    file: Path
    tree: dict[str, Any]
    notices: list[str]
    words: tuple[str, ...]

    def experiment(self) -> Experiment:
        """Validate.

        Raises:
            UserError: listing every problem, with the nearest known name.
        """
        return of_file(self.file, resolve(complete_rows(self.tree)), Experiment)

    def at(self, point: Mapping[str, Any]) -> Experiment:
        """The experiment without its sweep, with other values of some settings by dotted key.

        Raises:
            UserError: as :meth:`experiment`.
        """
        tree = {key: value for key, value in self.tree.items() if key != "sweep"}
        for key, value in point.items():
            tree = merge(tree, _nested(_parts(key), value), [])
        return of_file(self.file, resolve(complete_rows(tree)), Experiment)


def read_config(path: str | Path | Mapping[str, Any], overrides: Sequence = ()) -> Written:
    """Read, compose and override, as :func:`load_experiment` does.

    Raises:
        UserError: what cannot be read or merged.
    """
    notices: list[str] = []
    if isinstance(path, Mapping):
        file = Path("config")
        tree = _over_parents(file, copy.deepcopy(dict(path)), notices, (), {})
    else:
        file = find_config(path)
        tree = _compose(file, notices, (), {})
    plain = plain_overrides(overrides, options={})
    for override in plain:
        tree = merge(tree, with_new_keys(parse_override(override), notices), notices)
    return Written(file, tree, notices, (str(path), *plain))


def _parts(key: str) -> list[str]:
    """``a.b[0]`` as ``a``, ``b`` and ``0``."""
    return re.split(r"[.\[]", key.replace("]", ""))


def _nested(parts: Sequence[str], value: Any) -> dict[str, Any]:
    tree: Any = value
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``, the value read as YAML, in which # begins no comment.

    A value of punctuation alone is text: the shell removes quotes from ``a="|"``.

    Raises:
        UserError: it has no ``=``, or a value that is no YAML.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    parts = _parts(key)
    shown = shortened(text, 100)
    if not equals or not all(parts):
        raise UserError(f"invalid override '{shown}'{_remedy_for(text)}")
    if reason := text_problem(text):
        raise UserError(f"override '{shown}' {reason}")
    if len(parts) > DEEPEST:
        raise UserError(f"override '{shown}': nested more than {DEEPEST} keys deep; shorten it")
    tree: Any = value
    if not COMMENTED.match(value) and not MARKS.fullmatch(value):
        tree = read_text(value, f"override '{shown}'", ".".join(parts))
    return _nested(parts, tree)


def _remedy_for(word: str) -> str:
    """Suggest a remedy for a word without a key or without ``=``."""
    if word.endswith((".yaml", ".yml")):
        return "; one config is run at a time: name the other one in its 'extends'"
    remedy = "; write key.sub=value without blanks, such as pretrain.steps=100"
    return remedy if "=" in word else f"{remedy} (is an = missing?)"


def find_config(path: str | Path) -> Path:
    """The file ``path`` names: as given, or among the packaged configs, with or without .yaml."""
    packaged = Path(str(resources.files("ssdistill.configs")))
    for candidate in (user_path(path), packaged / path, packaged / f"{path}.yaml"):
        if _is_file(candidate):
            return candidate
    if os.path.isdir(user_path(path)):
        raise UserError(f"{str(path) or repr('')}: is a folder; name a YAML file in it")
    known = sorted(str(p.relative_to(packaged).with_suffix("")) for p in packaged.rglob("*.yaml"))
    name = str(path).removesuffix(".yaml")
    remedy = "name a YAML file or a packaged config, such as quickstart"
    raise UserError(no_file(path, remedy, nearest(name, known)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a name may be, say
        return False


def _compose(
    file: Path,
    notices: list[str],
    extended_by: tuple[Path, ...],
    composed: dict[Path, dict[str, Any]],
) -> dict[str, Any]:
    """The file's content over that of the files it extends.

    Args:
        extended_by: the files below it, each of which extends the next.
        composed: contents of files that were composed before; several others may extend one.
    """
    resolved = file.resolve()
    if resolved in extended_by:
        through = f" through {extended_by[-1].name}" if extended_by[-1] != resolved else ""
        raise UserError(f"{file}: extends itself{through}; remove one extends")
    if len(extended_by) > MOST_ANCESTORS:
        raise UserError(f"{file}: extends chain of more than {MOST_ANCESTORS} files; shorten it")
    if resolved in composed:
        return composed[resolved]
    content = read_file(file)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a mapping of keys to values; name a config file")
    composed[resolved] = _over_parents(file, content, notices, (*extended_by, resolved), composed)
    return composed[resolved]


def _over_parents(
    file: Path,
    content: dict[str, Any],
    notices: list[str],
    extended_by: tuple[Path, ...],
    composed: dict[Path, dict[str, Any]],
) -> dict[str, Any]:
    """A file's content over that of the files it extends."""
    content = with_new_keys(content, notices)
    parents, tree = content.pop("extends", None) or [], {}
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        shown = shortened(repr(parents))
        raise UserError(f"{file}: extends must name a file or a list of files (got {shown})")
    for parent in parents:
        parent = str(resolve({"extends": parent})["extends"])
        beside = file.parent / user_path(parent)
        try:
            parent_file = beside if _is_file(beside) else find_config(parent)
        except UserError as error:
            raise UserError(f"{file}: extends {error}") from None
        inherited = _compose(parent_file, notices, extended_by, composed)
        tree = merge(tree, inherited, notices)
    # Packaged files drop settings of each other on purpose: no notices.
    return merge(tree, content, [] if _is_packaged(file.resolve()) else notices)


def _is_packaged(file: Path) -> bool:
    """Whether a config belongs to ssdistill, installed or as a checkout."""
    folders = [folder for folder in file.parents if folder.name == "configs"]
    return any(
        (folder.parent / READER).is_file() or (folder.parent / "ssdistill" / READER).is_file()
        for folder in folders
    )
