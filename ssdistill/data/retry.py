"""Reading again what failed for reasons that pass: a slow disk, a network that was away."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ssdistill.data.bad_image import BadImage
from ssdistill.errors import one_line, shown

log = logging.getLogger(__name__)

PAUSES = (0.1, 1.0, 5.0)
"""Seconds before the second, third and fourth attempt."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that no second attempt mends."""
LASTING_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""A link that leads to itself, and a name that no file can have, stay so too."""
T = TypeVar("T")


def retried(read: Callable[[int], T], row: int, name: str) -> T:
    """Return ``read(row)``; after a failure of the system, try again with longer and longer pauses.

    Raises:
        BadImage: it failed every time, or the image itself is at fault.
    """
    for pause in (*PAUSES, None):
        try:
            return read(row)
        except LASTING as error:
            raise BadImage(error.strerror or one_line(error)) from error
        except OSError as error:
            reason = error.strerror or one_line(error)
            if error.errno in LASTING_NUMBERS:
                raise BadImage(reason) from error
            if pause is None:
                raise BadImage(f"{reason}, {len(PAUSES) + 1} times") from error
            log.warning("%s: %s; reading it again in %g s", shown(name), reason, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")
