"""Patterns of file names, as in shells and ``.gitignore``.

By hand: ``glob.translate`` and ``full_match``, which keep ``*`` within a folder, came with Python
3.13; with `fnmatch` it crosses folders.
"""

import re
from collections.abc import Callable, Sequence

from ssdistill.errors import UserError, shown


def matcher(patterns: Sequence[str], key: str) -> Callable[[str], bool]:
    """Return whether a relative path, or one of its parents, matches any pattern, as a function.

    ``*`` and ``?`` match anything but ``/``, ``**`` matches anything, ``[abc]`` one of the
    characters. A pattern without ``/`` matches names at any depth. Matching is case-sensitive.

    Args:
        key: config key of the patterns, for messages.

    Raises:
        UserError: a pattern is empty, or leads out of the folder.
    """
    for pattern in patterns:
        parts = pattern.strip("/").split("/")
        if pattern.startswith("/") or ".." in parts or not pattern.strip("/"):
            raise UserError(
                f"{key}: '{shown(pattern)}' is not a pattern below data.path; write it relative to "
                "that folder, such as 'cats/**' or '*.png'"
            )
    if not patterns:
        return lambda path: False
    regex = re.compile("|".join(f"(?:{_regex(pattern)})" for pattern in patterns), re.DOTALL)
    return lambda path: regex.fullmatch(path) is not None


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
