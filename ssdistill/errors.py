"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a key, a value.

    Its text is one line that names the thing at fault; the command line prints it
    without a traceback and exits with status 2.
    """


def nearest(name: str, known: object) -> str:
    """`` (did you mean 'x'?)`` for the closest name in ``known``, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters; its type where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def shown(name: object) -> str:
    """A file's name as one printable line: what cannot be printed is escaped."""
    text = str(name)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
