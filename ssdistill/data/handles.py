"""Open files that threads share and processes do not."""

import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from ssdistill.errors import UserError

T = TypeVar("T")


class PerProcess(Generic[T]):
    """What ``open_it`` returns, opened when it is first needed in a process.

    After a fork, and in a copy that was pickled, it is opened again: file positions, locks and
    maps of a library do not survive either.
    """

    def __init__(self, open_it: Callable[[], T]):
        self._open = open_it
        self._lock = threading.Lock()
        self._opened: tuple[int, T] | None = None

    def __call__(self) -> T:
        """Return the open object; whatever ``open_it`` raises passes."""
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        if opened is not None:
            # A thread that was not forked may have held it.
            self._lock = threading.Lock()
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), self._open())
            return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": self._open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_open"])


def require(module: str, extra: str, what: str) -> None:
    """Check that a library of an extra is installed.

    Args:
        what: what requires it, for the message.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(module) is None:
        raise UserError(f"{what} requires {module}: pip install 'ssdistill[{extra}]'")
