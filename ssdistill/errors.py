"""The errors that users see, and what their one-line messages are made of."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake in the user's input: a file, a key, a value.

    Its message is one line that names what is at fault; the command line prints it
    without a traceback and exits with status 2.
    """


class DamagedFile(UserError):
    """A file of a runs folder whose content is not what was written.

    Attributes:
        path: the file, or the folder of a model.
    """

    def __init__(self, path: Path, reason: object):
        self.path, self.reason = path, shortened(reason, 200)
        super().__init__(
            f"{path}: damaged ({self.reason}); move the stage's folder away and run the same "
            "command again: the stage is then recomputed"
        )

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """Travel to another process as what it was made of."""
        return type(self), (self.path, self.reason)


class StoppedEarly(BaseException):
    """A sweep stops a training in which others did better; its message says when.

    No :class:`Exception`: like Ctrl-C, it interrupts whatever is running, and is no failure.
    """


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error, whatever a library that was interrupted made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its device has too little memory."""
    words = ("can't allocate memory", "out of memory", "alloc_cpu", "CUDA_ERROR_OUT_OF_MEMORY")
    # Not imported here: the import itself may be what failed.
    of_device = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    return isinstance(error, MemoryError | of_device) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


LIKENESS = 0.65
"""Smallest similarity of a slip and the name that was meant, from 0 to 1, as difflib measures it.

One letter too many, too few or wrong is found in names from three letters on; other names of three
to five letters are less like each other."""
LONGEST_NAME = 100
"""Longer words are no slip of the pen, and comparing them takes long."""


def closest(name: object, known: Iterable[object], likeness: float = LIKENESS) -> str:
    """Return the name in ``known`` that was probably meant, or an empty string.

    Capitals, and hyphens in place of underscores, do not matter.
    """
    import difflib

    plain = {_plain(word): str(word) for word in reversed([*known])}
    text = _plain(name)
    if len(text) > LONGEST_NAME:
        return ""
    # Swapped letters are half of a short name.
    swapped = [word for word in plain if sorted(word) == sorted(text)]
    if close := difflib.get_close_matches(text, plain, n=1, cutoff=likeness) or swapped[:1]:
        return plain[close[0]]
    return ""


def _plain(name: object) -> str:
    return str(name).lower().replace("-", "_")


def nearest(name: object, known: Iterable[object], likeness: float = LIKENESS) -> str:
    """Return `` (did you mean 'x'?)`` for the closest name in ``known``, or an empty string."""
    close = closest(name, known, likeness)
    return f" (did you mean '{close}'?)" if close else ""


def not_one_of(settings: Mapping[Any, object]) -> str | None:
    """Say which of several settings are set, of which exactly one is required; None if one is.

    Args:
        settings: their values by name, None where one is not set.
    """
    *names, last = settings
    written = {k: f"{v:g}" if isinstance(v, float) else v for k, v in settings.items()}
    chosen = [f"{k}={shortened(v, 30)}" for k, v in written.items() if v is not None]
    if len(chosen) == 1:
        return None
    found = " and ".join(chosen) + " are set" if chosen else "none is set"
    return f"set exactly one of {', '.join(names)} and {last} ({found})"


NO_FILE = "no such file or folder"
"""What is said of a path that leads nowhere, whoever finds that."""


def no_file(path: object, remedy: str = "check the path", hint: str = "") -> str:
    """Return the message on a file or folder of the user's that does not exist.

    Args:
        path: as it was written, behind its key if it has one: ``data.root=photos``.
        remedy: what to do.
        hint: what is known of it besides, with what is before it.
    """
    return f"{shortened(path, 300)}: {NO_FILE}{hint}; {remedy}"


def system_reason(error: BaseException) -> str:
    """Why the system or a library could not open a file, without the file's name."""
    if isinstance(error, FileNotFoundError):
        return NO_FILE
    return getattr(error, "strerror", None) or one_line(error)


def one_line(error: BaseException) -> str:
    """An error's message, or its type if it has none, on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def shown(name: object) -> str:
    """Return a file's name as one line; characters that cannot be printed are escaped."""
    text = str(name)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def shortened(text: object, most: int = 60) -> str:
    """Return ``text`` on one printable line, at most ``most`` characters long."""
    text = " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())
    text = "".join(shown(character) for character in text.replace("\0", "\\0"))
    return text if len(text) <= most else f"{text[: most - 1]}…"
