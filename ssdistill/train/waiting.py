"""How long training waits for its data, and what would shorten that."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

from ssdistill.data.batch import Batch
from ssdistill.train.progress import console

WINDOW = 50
"""Steps that the share is taken over."""
TOLERATED = 0.1
"""Fraction of waiting that is not worth a word."""


class Waiting:
    """The fraction of the last steps that passed before their batches were there.

    What is read ahead costs nothing. On a device that computes by itself the time counts only
    where the device is idle as well: as long as it has work, so has the loop that queues it.

    Args:
        title: what trains, for the message.
        remedy: what would help, as a phrase; empty where nothing would, which then is not told.
    """

    def __init__(self, title: str, remedy: str):
        self.title, self.remedy = title, remedy
        self._waited: deque[float] = deque(maxlen=WINDOW)
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._first = True

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; note how long each was waited for."""
        began = time.perf_counter()
        for batch in batches:
            self._waited.append(time.perf_counter() - began)
            yield batch
            began = time.perf_counter()

    def step(self, seconds: float) -> None:
        """Note the length of a step, waiting included; once in a training, say if it is too much.

        The first step after a start has nothing read ahead, and does not count.
        """
        if self._first:
            self._first = False
            self._waited.clear()
            return
        self._steps.append(seconds)
        if self.remedy and len(self._steps) == WINDOW and self.share > TOLERATED:
            console.print(
                f"  {self.title}: {self.share:.0%} of the last {WINDOW} steps is waiting for "
                f"images; {self.remedy}",
                style="yellow",
            )
            self.remedy = ""

    @property
    def share(self) -> float:
        """Return the waiting of the last steps as a fraction of them; 0 before the second step."""
        total = sum(self._steps)
        return min(1.0, sum(self._waited) / total) if total else 0.0
