"""Handles that threads share and processes do not, and checks for optional libraries."""

import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from ssdistill.errors import UserError

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Lazily opened object, with one instance per process.

    It is reopened after a fork and after unpickling, since file positions, locks and memory maps
    survive neither.

    Args:
        open_it: opens the object.
    """

    def __init__(self, open_it: Callable[[], T]):
        self._open = open_it
        self._lock = threading.Lock()
        self._opened: tuple[int, T] | None = None

    def __call__(self) -> T:
        """Return the open object; raises whatever ``open_it`` raises."""
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        if opened is not None:
            # At the fork, a thread of the parent may have held the lock.
            self._lock = threading.Lock()
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), self._open())
            return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": self._open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_open"])


def require(module: str, extra: str, feature: str) -> None:
    """Check that a library of an extra is installed.

    Args:
        feature: what requires the library, for the message.

    Raises:
        UserError: the library is not installed.
    """
    if find_spec(module) is None:
        raise UserError(f"{feature} requires {module}: pip install 'ssdistill[{extra}]'")
