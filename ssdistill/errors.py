"""The errors that users see, and what their one-line messages are made of."""

import sys
from collections.abc import Iterable
from pathlib import Path


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


def closest(name: object, known: Iterable[object], likeness: float = 0.6) -> str:
    """Return the name in ``known`` that was probably meant, or an empty string.

    Args:
        likeness: smallest similarity of the names, from 0 to 1, as difflib measures it.
    """
    import difflib

    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=likeness)
    return close[0] if close else ""


def nearest(name: object, known: Iterable[object], likeness: float = 0.6) -> str:
    """Return `` (did you mean 'x'?)`` for the closest name in ``known``, or an empty string."""
    close = closest(name, known, likeness)
    return f" (did you mean '{close}'?)" if close else ""


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
