"""Time that processes take to average gradients; imports little, as every process repeats it."""

import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

PROCESSES, REPEATS = 2, 5
"""Processes on this machine, and times that they average; one more before them is not timed."""


def averaging_seconds(count: int) -> float:
    """Return the median seconds of averaging ``count`` float32 between the processes, by gloo."""
    context = get_context("spawn")
    with TemporaryDirectory() as folder:
        found = Path(folder) / "seconds"
        processes = [
            context.Process(target=_average, args=(rank, folder, count, found))
            for rank in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return median(map(float, found.read_text().split()))


def _average(rank: int, folder: str, count: int, found: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    gradient_P, seconds = torch.ones(count), []
    for _ in range(REPEATS + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradient_P)
        gradient_P /= PROCESSES
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        found.write_text(" ".join(map(str, seconds[1:])))
    dist.destroy_process_group()
