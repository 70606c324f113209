"""Normalize command-line overrides, including the spellings of sweep agents."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ssdistill.errors import UserError, closest, one_line, shortened

RENAMED = "_settings"
"""What W&B's columns append to the name of a section that is called like one of them."""
COLUMNS = {"experiment", "row", "stage", "seed", "teacher", "student", "losses", "method", "steps"}
WANDB_NOTES = {"_wandb", "wandb_version"}
KEY = re.compile(r"[A-Za-z_]\w*(\.[\w.-]+)*")
"""The first part of a key is a field of an experiment and holds no hyphen; an option may."""


def plain_overrides(words: Iterable[str], options: Mapping[str, bool]) -> list[str]:
    """A command line in which every setting is written ``key=value``, behind all other words.

    Understood are ``--key=value``, ``--key value``, ``--section.key`` for true, ``+key=value``
    and ``++key=value``, and a JSON object of dotted keys: what W&B puts in place of ``${args}``,
    ``${args_no_equals}``, ``${args_no_boolean_flags}``, ``${args_append_hydra}``,
    ``${args_override_hydra}`` and ``${args_json}``. Python's None, which it writes, is null.

    Args:
        words: of the command line.
        options: the command's own, such as ``--runs``, and whether they take a value. These, and
            what is no setting in any spelling, are left as they are.

    Raises:
        UserError: a JSON object that cannot be read, or a misspelt option.
    """
    words, other_words, settings = list(words), [], []
    if odd := [word for word in words if not isinstance(word, str)]:
        raise UserError(f"override {shortened(repr(odd[0]))}: expected text, such as 'seeds=[0,1]'")
    while words:
        word = words.pop(0)
        if word == "--":
            return [*other_words, *_settings_of_restarted_run(settings), word, *words]
        if word.startswith("--"):
            option_words, setting = _option(word, words, options)
            other_words += option_words
            settings += setting
        elif word.startswith("{"):
            settings += _json_settings(word)
        elif _is_setting(setting := word.lstrip("+")):
            _refuse_misspelling(setting.partition("=")[0], word, options)
            settings.append(_without_none(setting))
        else:
            other_words.append(word)
    return [*other_words, *_settings_of_restarted_run(settings)]


def _settings_of_restarted_run(settings: list[str]) -> list[str]:
    """Settings as an experiment knows them, of a run that an agent of a sweep starts once more.

    The agent then writes all that W&B holds of the run's config: sections that share the name
    of a column as ``<name>_settings``, the columns themselves, and notes of W&B's own.
    """
    keys = {setting.partition("=")[0] for setting in settings}
    renamed = {key for key in keys if key.endswith(RENAMED)} - _sections()
    if not renamed and not keys & WANDB_NOTES:
        return settings
    dropped = WANDB_NOTES | (COLUMNS - _sections()) | {k.removesuffix(RENAMED) for k in renamed}
    plain = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in renamed:
            plain.append(f"{key.removesuffix(RENAMED)}={value}")
        elif key not in dropped:
            plain.append(setting)
    return plain


def _option(
    word: str, following: list[str], options: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """``word`` as an option of the command's own, or as a setting.

    Its value is taken off ``following`` if it stands there.
    """
    name, equals, value = word[2:].partition("=")
    takes_values = [
        takes_value for option, takes_value in options.items() if option.startswith(f"--{name}")
    ]
    if takes_values:
        takes_next = takes_values[0] and not equals and following
        return [word, following.pop(0)] if takes_next else [word], []
    _refuse_misspelling(name, word, options)
    if not KEY.fullmatch(name):
        return [word], []
    if equals:
        return [], [_without_none(f"{name}={value}")]
    if following and not following[0].startswith("--") and not _is_setting(following[0]):
        return [], [_without_none(f"{name}={following.pop(0)}")]
    return ([], [f"{name}=true"]) if "." in name else ([word], [])


def _refuse_misspelling(name: str, word: str, options: Mapping[str, bool]) -> None:
    """Refuse a name that is like one of the options and is no section of a config.

    Args:
        name: of an option or a setting, without hyphens before it.
        word: as it stands on the command line.
    """
    hint = "" if "." in name else nearest_option(name, options)
    if hint and name not in _sections():
        word_kind = "option" if word.startswith("-") else "setting"
        raise UserError(f"{shortened(word)}: no such {word_kind}{hint}")


def nearest_option(word: str, options: Iterable[str]) -> str:
    """`` (did you mean '--runs'?)`` for ``runz``, or an empty string."""
    known = [option.strip("-") for option in options if option.startswith("--")]
    close = closest(word.partition("=")[0].strip("-"), known)
    return f" (did you mean '--{close}'?)" if close else ""


def _sections() -> set[str]:
    """The first parts of all keys of a config."""
    from ssdistill.experiment.schema import Experiment
    from ssdistill.settings.places import names

    return set(names(Experiment))


def _is_setting(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals and KEY.fullmatch(name))


def _json_settings(word: str) -> list[str]:
    try:
        settings = json.loads(word)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"'{shortened(word)}': invalid JSON ({one_line(error)}); write key=value"
        ) from None
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _without_none(setting: str) -> str:
    """``None``, also within lists and mappings as Python prints them, as YAML writes it."""
    key, _, value = setting.partition("=")
    if "None" not in value:
        return setting
    # Of nesting without end.
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return f"{key}={json.dumps(ast.literal_eval(value))}"
    return setting
