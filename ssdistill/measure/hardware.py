"""Processor features that determine how fast a network runs."""

import os
from pathlib import Path

import torch

CPU_FACTS = Path("/proc/cpuinfo")
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
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return used
    # "flags" on x86, "Features" on ARM.
    line = next((x for x in lines if x.lower().startswith(("flags", "features"))), "")
    known = set(line.partition(":")[2].split())
    flags = ", ".join(flag for flag in FLAGS if flag in known)
    return f"{used} ({flags})" if flags else used
