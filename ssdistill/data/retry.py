"""Retry reads that fail for transient reasons, such as a slow disk or a network outage."""

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
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors for which a retry is useless."""
PERMANENT_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""Their error numbers, if there is no class for them: a circular link, and too long a name."""
T = TypeVar("T")


def retried(read: Callable[[int], T], row: int, name: str) -> T:
    """Return ``read(row)``; retry with increasing pauses if the system fails.

    Raises:
        BadImage: all attempts failed, or the error is permanent.
    """
    for pause in (*PAUSES, None):
        try:
            return read(row)
        except PERMANENT as error:
            raise BadImage(error.strerror or one_line(error)) from error
        except OSError as error:
            reason = error.strerror or one_line(error)
            if error.errno in PERMANENT_NUMBERS:
                raise BadImage(reason) from error
            if pause is None:
                raise BadImage(f"{reason}, in {len(PAUSES) + 1} attempts") from error
            log.warning("%s: %s; retrying in %g s", shown(name), reason, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")
