"""Keep memory that a training step frees for the next one."""

import ctypes
import functools
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory instead of returning it to the kernel; True if it agreed.

    A step on the CPU allocates and frees the same large tensors again and again; by default every
    one of them costs fresh pages, hundreds of thousands of page faults a step. The price is that
    the process stays as large as its largest step. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(M_ARENA_MAX, 1)
    # Some versions accept no more than 32 MiB.
    raised = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)
    return bool(raised and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
