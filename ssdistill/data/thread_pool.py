"""Thread pools whose threads compute alone.

Each operation of torch on a CPU is itself shared out among threads. Where several images are
processed side by side, these threads only compete: two views of 224 pixels with SimCLR's colors
took twice as long (measured on 2 cores).
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")


def thread_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of ``threads``, each of which runs operations of torch by itself.

    Matrix products are an exception: MKL has its own count of threads.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_compute_alone)


def _compute_alone() -> None:
    # torch sets its own number in every new thread, at the first call that needs it.
    torch.get_num_threads()
    # OpenMP counts threads for each thread that calls it; torch.set_num_threads is for all.
    threadpool_limits(limits=1, user_api="openmp")


def each(
    pool: ThreadPoolExecutor, threads: int, work: Callable[[T], None], items: Iterable[T]
) -> None:
    """Call ``work`` with every item, in ``threads`` threads that take one after the other.

    One task per thread: with one per item, every result wakes the waiting thread up.
    """
    waiting = deque(items)

    def run(_: int) -> None:
        while waiting:
            try:
                item = waiting.popleft()
            except IndexError:  # taken by another thread
                return
            work(item)

    list(pool.map(run, range(threads)))
