"""Notice that one of several processes is gone or has failed, and end the others.

A process that waits for a message of another waits without limit. So each of them also sends a
sign of life twice a second, on a connection of its own, and process 0 reads them all. It alone says
what happened; the others read whether it is there, and whether it has given up.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from subprocess import Popen
from typing import TextIO

from torch.distributed import DistError, TCPStore

from ssdistill.chain.processes import several_processes
from ssdistill.distributed import broadcast
from ssdistill.errors import one_line
from ssdistill.terminal.console import complain

SILENCE = 30.0
"""Seconds without a sign of life after which a process is lost."""
PAUSE = 0.5
"""Seconds between two looks."""
GRACE = 5.0
"""Seconds that process 0 has to say itself what happened, once another process has failed."""
EXIT_LOST, EXIT_NO_ERROR = 1, 0
PARENT = "SSDISTILL_PARENT"
"""Variable that tells processes who has started them."""
OVER, FAILED, LEFT = "over", "failed", "left"


class Watch:
    """Signs of life of all processes.

    Args:
        rank, size: of this process, and how many there are.
        doing: what process 0 is doing, for the message.

    Attributes:
        store: for messages of the main thread.
    """

    def __init__(self, rank: int, size: int, doing: Callable[[], str]):
        self.rank, self.size, self.doing = rank, size, doing
        self._stderr = sys.stderr  # an exporter may have silenced it when there is much to say
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        limit = timedelta(seconds=SILENCE)
        # Two connections: one call on a connection may wait for another.
        if rank == 0:
            self._server = TCPStore(
                "0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=limit
            )
        port = broadcast(self._server.port if rank == 0 else 0)
        self.store = TCPStore(host, port, is_master=False, timeout=limit)
        self._thread_store = TCPStore(host, port, is_master=False, timeout=limit)
        self._done = threading.Event()
        self._last_sign = {other: ("", time.monotonic()) for other in range(size)}
        self._failed_since: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within the block.

        An error that leaves the block of process 0 ends the others; one that leaves the block of
        another is reported by process 0.
        """
        self._thread.start()
        try:
            yield
            self._leave()
        except BaseException as error:
            self._signal_failure(error)
            raise
        finally:
            self._done.set()
            self._thread.join()

    def _leave(self) -> None:
        """Leave once the others have: process 0 keeps the store that they read."""
        if self.rank > 0:
            self.store.set(f"{LEFT}/{self.rank}", "")
            return
        until = time.monotonic() + SILENCE
        keys = [f"{LEFT}/{other}" for other in range(1, self.size)]
        while time.monotonic() < until and not self.store.check(keys):
            time.sleep(PAUSE / 10)

    def _signal_failure(self, error: BaseException) -> None:
        if self.rank == 0:
            # What breaks here may follow from what broke elsewhere, as the watch will say.
            if isinstance(error, RuntimeError) and is_of_connection(error):
                time.sleep(SILENCE + GRACE)
            with suppress(Exception):
                self.store.set(OVER, "")
                time.sleep(4 * PAUSE)
            return
        with suppress(Exception):  # process 0 may be gone
            self.store.set(f"{FAILED}/{self.rank}", one_line(error))
        # The watch ends this process as soon as process 0 has said so, or is gone.
        time.sleep(2 * SILENCE)

    def _run(self) -> None:
        count = 0
        while not self._done.wait(PAUSE):
            count += 1
            try:
                self._thread_store.set(f"alive/{self.rank}", str(count))
                reason = self._look() if self.rank == 0 else self._look_at_first()
            except Exception:  # whatever is wrong with a connection
                if self.rank > 0 and not self._done.is_set():
                    os._exit(EXIT_LOST)
                return
            if reason and not self._done.is_set():
                self._give_up(reason)

    def _look(self) -> str | None:
        """Return what happened to another process, or None."""
        now = time.monotonic()
        for other in range(1, self.size):
            if self._thread_store.check([f"{LEFT}/{other}"]):
                continue
            if self._thread_store.check([f"{FAILED}/{other}"]):
                since = self._failed_since.setdefault(other, now)
                if now - since > GRACE:
                    text = self._thread_store.get(f"{FAILED}/{other}").decode()
                    return f"process {other} failed ({text})"
            if self._silent(other, now):
                return f"process {other} is gone: no sign of life for {SILENCE:.0f} s"
        return None

    def _look_at_first(self) -> str | None:
        if self._thread_store.check([OVER]):
            # Whatever happened, process 0 says it, and must not be ended for another's status.
            os._exit(EXIT_NO_ERROR)
        return "process 0 is gone" if self._silent(0, time.monotonic()) else None

    def _silent(self, other: int, now: float) -> bool:
        key = f"alive/{other}"
        sign = self._thread_store.get(key).decode() if self._thread_store.check([key]) else ""
        before, since = self._last_sign[other]
        if sign != before:
            self._last_sign[other] = (sign, now)
            return False
        return now - since > SILENCE

    def _give_up(self, reason: str) -> None:
        if self.rank == 0:
            _report_loss(reason, self.doing(), self._stderr)
            with suppress(Exception):
                self._thread_store.set(OVER, "")
                time.sleep(4 * PAUSE)
        os._exit(EXIT_LOST)


@contextmanager
def watching_started(
    started: Callable[[], list[Popen] | None], doing: Callable[[], str]
) -> Iterator[None]:
    """Within the block, end this process once one that it has started ends with an error.

    Lightning ends it, too, a few seconds later, and says nothing. A process that was started ends
    with the one that started it.

    Args:
        started: the processes, once there are any.
        doing: what this process is doing, for the message.
    """
    done, parent, stderr = threading.Event(), os.environ.get(PARENT, ""), sys.stderr
    if not parent and several_processes():  # a launcher, which would end this one
        parent = str(os.getppid())

    def look() -> None:
        while not done.wait(PAUSE / 5):
            if parent not in ("", str(os.getpid()), str(os.getppid())):
                os._exit(EXIT_LOST)
            processes = started() or []
            codes = [process.poll() for process in processes]
            failed = [(n, code) for n, code in enumerate(codes, start=1) if code]
            if failed and not done.is_set():
                number, code = failed[0]
                how = f"was killed (signal {-code})" if code < 0 else f"ended with status {code}"
                _report_loss(f"process {number} {how}", doing(), stderr)
                for process in processes:
                    with suppress(OSError):
                        process.kill()
                os._exit(EXIT_LOST)

    thread = threading.Thread(target=look, name="watch of started processes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _report_loss(reason: str, doing: str, stream: TextIO | None) -> None:
    complain(f"error: {reason} during {doing}; run the same command again to resume", stream)


def is_of_connection(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer any more."""
    text = str(error).lower()
    return isinstance(error, DistError) or any(word in text for word in ("gloo", "nccl", "socket"))
