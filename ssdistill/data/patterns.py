"""Patterns of file names, as shells and ``.gitignore`` have them."""

import re
from collections.abc import Callable, Sequence

from ssdistill.errors import UserError, shown


def matcher(patterns: Sequence[str], key: str) -> Callable[[str], bool]:
    """Return a function that says whether a relative path, or a folder above it, matches any.

    ``*`` and ``?`` stand for anything but ``/``, ``**`` for anything, ``[abc]`` for one of some
    characters. A pattern without ``/`` matches a name at any depth. Case counts.

    Args:
        key: of the patterns in the config, for the message.

    Raises:
        UserError: an empty pattern, or one that leads out of the folder.
    """
    for pattern in patterns:
        parts = pattern.strip("/").split("/")
        if pattern.startswith("/") or ".." in parts or not pattern.strip("/"):
            raise UserError(
                f"{key}: '{shown(pattern)}' is no path below data.path; write it relative to that "
                "folder, such as 'cats/**' or '*.png'"
            )
    if not patterns:
        return lambda path: False
    found = re.compile("|".join(f"(?:{_regex(pattern)})" for pattern in patterns), re.DOTALL)
    return lambda path: found.fullmatch(path) is not None


def _regex(pattern: str) -> str:
    pattern = pattern.removeprefix("./").rstrip("/")
    anywhere = "" if "/" in pattern else "(?:.*/)?"
    pieces = re.findall(r"\*\*/|\*+|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL)
    return anywhere + "".join(map(_piece, pieces)) + "(?:/.*)?"


def _piece(piece: str) -> str:
    if piece == "**/":
        return "(?:.*/)?"
    if piece.startswith("**"):
        return ".*"
    if piece == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if piece.startswith("[") and len(piece) > 2:
        negated, inside = piece[1] == "!", piece[1:-1].removeprefix("!")
        inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside)
        return f"(?!/)[{'^' if negated else ''}{inside}]" if inside else re.escape(piece)
    return re.escape(piece)
