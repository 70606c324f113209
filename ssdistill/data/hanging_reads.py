"""Threads that read, and are abandoned if a read does not return.

A read cannot be interrupted, for instance if a network file system stopped answering. The thread
that waits for the results of the others therefore looks at the times at which their reads began:
it names a read that takes long, and replaces a thread whose read takes too long. Reads in time
cost no more than noting these times.
"""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ssdistill.errors import UserError, shown

log = logging.getLogger(__name__)

WARN_SECONDS = 30.0
"""Time after which a read that has not returned is named."""
MOST_ABANDONED = 16
"""Reads that may hang at once: four attempts for each of four images."""
LOOK_SECONDS = 0.25
"""Time between two looks at the reads."""
S = TypeVar("S")
T = TypeVar("T")


class Abandoned(BaseException):
    """Ends a thread whose read returned too late; another thread has taken over its work."""


class Attempts:
    """Reads of one thread.

    Attributes:
        missed: by name, how many reads of what the thread works on have not returned in time.
    """

    def __init__(self) -> None:
        self.missed: dict[str, int] = {}
        self._lock = threading.Lock()
        self._name, self._seconds, self._since, self._named = "", 0.0, 0.0, False
        self._abandoned = False

    def begin(self, name: str, seconds: float) -> None:
        """Note that a read begins, which is given up after ``seconds``."""
        self._name, self._seconds, self._named = name, seconds, False
        self._since = time.monotonic()

    def end(self) -> None:
        """Note that the read returned.

        Raises:
            Abandoned: it had been given up.
        """
        with self._lock:
            self._since = 0.0
            if self._abandoned:
                _hanging.discard(self)
                raise Abandoned

    def timed_out(self) -> bool:
        """Name a read that takes long; return whether one takes too long and is given up.

        Raises:
            UserError: so many others are given up and have not returned.
        """
        with self._lock:
            waited = time.monotonic() - self._since if self._since else 0.0
            if self._since and waited >= self._seconds:
                self._abandoned = True
                _hanging.add(self)
                self.missed[self._name] = self.missed.get(self._name, 0) + 1
            elif waited >= WARN_SECONDS and not self._named:
                self._named = True
                log.warning(
                    "%s: not read after %g s; giving up after %g s (data.read_seconds)",
                    *(shown(self._name), WARN_SECONDS, self._seconds),
                )
        if self._abandoned and len(_hanging) >= MOST_ABANDONED:
            raise UserError(
                f"{len(_hanging)} reads have not returned in {self._seconds:g} s, the last of "
                f"{shown(self._name)}; check the disk or network, or raise data.read_seconds"
            )
        return self._abandoned


_hanging: set[Attempts] = set()
_of_thread = threading.local()


def attempts() -> Attempts | None:
    """Return the reads of this thread; None if no other thread looks after them."""
    return getattr(_of_thread, "attempts", None)


class _Job(Generic[S, T]):
    """Items to work on, and the results."""

    def __init__(self, work: Callable[[S], T], items: Iterable[S], threads: int):
        self.work = work
        self.waiting = deque(enumerate(items))
        self.results: list[Any] = [None] * len(self.waiting)
        self.error: BaseException | None = None
        self.at: dict[Attempts, tuple[int, S]] = {}
        self._lock, self._running = threading.Lock(), threads
        self.finished = threading.Lock()
        self.finished.acquire()

    def run(self, own: Attempts, taken: tuple[int, S] | None = None) -> None:
        """Work on ``taken`` and then on what is waiting, in one of the threads."""
        try:
            while taken or self.waiting:
                if taken is None:
                    try:
                        taken = self.waiting.popleft()
                    except IndexError:  # taken by another thread
                        break
                    own.missed.clear()
                self.at[own] = taken
                self.results[taken[0]] = self.work(taken[1])
                taken = None
        except Abandoned:
            raise
        except BaseException as error:
            self.waiting.clear()
            self.error = self.error or error
        self.at.pop(own, None)
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self.finished.release()


class AbandoningPool:
    """Threads that work on lists of items, and are replaced if a read of theirs does not return.

    Reads are those by ``ssdistill.data.retry.retried``.

    They are daemons: a read that never returns must not keep the process from ending.

    Args:
        threads: number of threads.
        name: of the threads.
        initializer: called first in each of them.
    """

    def __init__(self, threads: int, name: str, initializer: Callable[[], None] | None = None):
        self.threads, self._name, self._initializer = threads, name, initializer
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        for _ in range(threads):
            self._start()
        self._stop = weakref.finalize(self, _stop, self._jobs, threads)

    def __enter__(self) -> "AbandoningPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def map(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Return ``work(item)`` for every item, in order.

        Each thread takes one item after the other: with one task per item, every result would
        wake the waiting thread up.

        Raises:
            UserError: too many reads hang.
            BaseException: of the first call that failed; no further items are worked on.
        """
        job = _Job(work, items, self.threads)
        for _ in range(self.threads):
            self._jobs.put(job)
        try:
            while not job.finished.acquire(timeout=LOOK_SECONDS):
                for own, taken in list(job.at.copy().items()):
                    if own.timed_out():
                        job.at.pop(own, None)
                        self._start(job, taken, own.missed)
        except BaseException:
            job.waiting.clear()
            raise
        if job.error is not None:
            raise job.error
        return job.results

    def _start(self, *task: Any) -> None:
        threading.Thread(
            target=_work_on_jobs,
            args=(self._jobs, self._initializer, *task),
            name=self._name,
            daemon=True,
        ).start()


def _stop(jobs: "SimpleQueue[_Job | None]", threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


def _work_on_jobs(
    jobs: "SimpleQueue[_Job | None]",
    initializer: Callable[[], None] | None,
    job: _Job | None = None,
    taken: Any = None,
    missed: dict[str, int] | None = None,
) -> None:
    """Work on jobs until there are no more; first on what an abandoned thread has left."""
    _of_thread.attempts = own = Attempts()
    own.missed = dict(missed or {})
    if initializer is not None:
        initializer()
    try:
        if job is not None:
            job.run(own, taken)
        while True:
            job = None  # or its images would stay in memory
            job = jobs.get()
            if job is None:
                return
            job.run(own)
    except Abandoned:
        return
