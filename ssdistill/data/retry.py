"""Retry reads that fail for transient reasons, such as a slow disk or a network outage.

By hand: tenacity would replace a loop of ten lines. It cannot give up a read that never returns,
nor count such attempts over threads, which `hanging_reads` does.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ssdistill.data.bad_image import BadImage
from ssdistill.data.hanging_reads import AbandoningPool, attempts
from ssdistill.errors import shown, system_reason

log = logging.getLogger(__name__)

PAUSES = (0.1, 1.0, 5.0)
"""Seconds before the second, third and fourth attempt."""
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors for which a retry is useless."""
PERMANENT_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""Their error numbers, if there is no class for them: a circular link, and too long a name."""
T = TypeVar("T")


def retried(read: Callable[[int], T], row: int, name: str, seconds: float | None = None) -> T:
    """Return ``read(row)``; retry with increasing pauses if the system fails.

    Args:
        seconds: time after which a read that has not returned is given up, and is read again; None
            to wait for it.

    Raises:
        BadImage: all attempts failed, or the error is permanent.
        UserError: too many reads have not returned.
    """
    if seconds is None:
        return _retried(read, row, name)
    own = attempts()
    if own is None:
        with AbandoningPool(1, "reading") as pool:
            return pool.map(lambda row: retried(read, row, name, seconds), [row])[0]

    def watched(row: int) -> T:
        own.begin(name, seconds)
        try:
            return read(row)
        finally:
            own.end()

    missed = own.missed.get(name, 0)
    if missed > len(PAUSES):
        raise BadImage(f"not read in {seconds:g} s, in {missed} attempts")
    if missed:
        log.warning("%s: not read in %g s; retrying", shown(name), seconds)
    return _retried(watched, row, name, missed)


def _retried(read: Callable[[int], T], row: int, name: str, missed: int = 0) -> T:
    for pause in (*PAUSES, None)[missed:]:
        try:
            return read(row)
        except PERMANENT as error:
            raise BadImage(system_reason(error)) from error
        except OSError as error:
            reason = system_reason(error)
            if error.errno in PERMANENT_NUMBERS:
                raise BadImage(reason) from error
            if pause is None:
                raise BadImage(f"{reason}, in {len(PAUSES) + 1} attempts") from error
            log.warning("%s: %s; retrying in %g s", shown(name), reason, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")
