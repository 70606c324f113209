"""Processor features that determine how fast a network runs."""

import os
import platform
from pathlib import Path

import torch

CPU_FACTS = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686")
INT8_DOT_PRODUCTS = ("avx_vnni", "avx512_vnni", "amx_int8")
"""Instructions of x86 processors that add products of int8 in 32 bits; without them, pairs of
products are added in 16 bits, and cut off there."""
FLAGS = (
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
"""Instructions that float, bfloat16 and int8 products are made of, as Linux names them."""


def all_threads() -> int:
    """Cores this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def instruction_set(facts: Path = CPU_FACTS) -> str:
    """What PyTorch uses and what the processor has, e.g. ``AVX512 (avx512_vnni, amx_int8)``.

    An int8 figure means little without it: on a processor without VNNI or AMX int8 is hardly
    faster than float.

    Args:
        facts: Linux's description of the processor; only PyTorch's word where there is none.
    """
    used = torch.backends.cpu.get_cpu_capability()
    known = _flags(facts)
    flags = ", ".join(flag for flag in FLAGS if flag in known)
    return f"{used} ({flags})" if flags else used


def int8_saturates(facts: Path = CPU_FACTS) -> bool:
    """Whether sums of int8 products overflow on this processor, as on x86 without VNNI or AMX.

    False where it cannot be told.
    """
    known = _flags(facts)
    on_x86 = platform.machine().lower() in X86
    return on_x86 and bool(known) and known.isdisjoint(INT8_DOT_PRODUCTS)


def _flags(facts: Path) -> set[str]:
    """Return what Linux says the processor has; nothing if there is no such file."""
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return set()
    # "flags" on x86, "Features" on ARM.
    line = next((x for x in lines if x.lower().startswith(("flags", "features"))), "")
    return set(line.partition(":")[2].split())
