"""Messages of running stages for the process that shows them.

Imports nothing that takes long.
"""

from collections.abc import Callable
from typing import Any

STARTED, LINE, PROGRESS = "started", "line", "progress"
Message = tuple[tuple[str, int], str, Any]
"""Key of a stage, one of the words above, and what there is to say."""
MOST_MESSAGES = 100_000


class Bulletin:
    """An actor that keeps messages until they are taken."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def post(self, message: Message) -> None:
        """Keep a message; too many that nobody takes are dropped."""
        if len(self._messages) < MOST_MESSAGES:
            self._messages.append(message)

    def take(self) -> list[Message]:
        """Return the messages since the last call."""
        taken, self._messages = self._messages, []
        return taken


class Lines:
    """A stream for a console: passes each whole line on."""

    encoding = "utf-8"

    def __init__(self, post: Callable[[str], object]):
        self._post, self._rest = post, ""

    def write(self, text: str) -> int:
        """Pass on the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._post(line.strip())
        return len(text)

    def flush(self) -> None:
        """Wait for the end of the line."""

    def isatty(self) -> bool:
        """Return that it is no terminal."""
        return False
