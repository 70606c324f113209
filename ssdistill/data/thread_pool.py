"""Thread pools whose threads compute alone.

Each operation of torch on a CPU is itself shared out among threads. Where several images are
processed side by side, these threads only compete: two views of 224 pixels with SimCLR's colors
took twice as long (measured on 2 cores).
"""

import torch
from threadpoolctl import threadpool_limits

from ssdistill.data.hanging_reads import AbandoningPool


def thread_pool(threads: int, name: str) -> AbandoningPool:
    """Return a pool of ``threads``, each of which runs operations of torch by itself.

    Matrix products are an exception: MKL has its own count of threads.
    """
    return AbandoningPool(threads, name, _compute_alone)


def _compute_alone() -> None:
    # torch sets its own number in every new thread, at the first call that needs it.
    torch.get_num_threads()
    # OpenMP counts threads for each thread that calls it; torch.set_num_threads is for all.
    threadpool_limits(limits=1, user_api="openmp")
