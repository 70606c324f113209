"""Preserve the signal stack across libraries that replace it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux, sigaltstack(2)."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Give this thread its signal stack back at the end.

    OpenVINO's CPU plugin gives the thread that loads it a signal stack for AMX's larger
    registers. It unmaps that stack when it is unloaded, but puts the earlier one back only if it
    is unloaded by the same thread and in the reverse order of loading. Garbage collection keeps
    to neither, and the next Ctrl-C then kills Python without a word: its handlers run on a stack
    that is gone. CPython's own (faulthandler's) has room for AMX.
    """
    if sys.platform != "linux":
        yield
        return
    sigaltstack, before = ctypes.CDLL(None).sigaltstack, _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
