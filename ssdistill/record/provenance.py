"""Provenance: code, versions and machine; never a path, user or host name."""

import copy
import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "ssdistill",
    "torch",
    "torchvision",
    "timm",
    "lightly",
    "torch-pruning",
    "onnx",
    "onnxruntime",
    "numpy",
    "scikit-learn",
    "wandb",
)
"""Distributions whose version can change a number."""


def provenance() -> dict[str, Any]:
    """Everything about this process that can change a result.

    Returns:
        ``git`` (see :func:`git_state`), ``packages`` (name -> version), ``hardware``,
        ``python`` and ``platform``. A fresh copy; the facts are gathered once per process.
    """
    return copy.deepcopy(_gather())


@lru_cache(maxsize=1)
def _gather() -> dict[str, Any]:
    return {
        "git": git_state(),
        "packages": package_versions(),
        "hardware": hardware(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def git_state(repository: Path | None = None) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the code that runs.

    Args:
        repository: root of a work tree; the one that holds this package unless given.

    Returns:
        ``sha``, ``dirty`` and ``diff_sha256`` (hash of the difference to the commit, new source
        files and configs included; None when clean); or None for a package that was installed
        rather than checked out, and where git is missing.
    """
    root = repository or Path(__file__).resolve().parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    # A site-packages folder may lie inside somebody else's repository.
    if top is None or Path(top.decode().strip()).resolve() != root.resolve():
        return None
    sha = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff") if sha else b""
    new = _git(
        root, "ls-files", "-z", "--others", "--exclude-standard", "--", "ssdistill", "configs"
    )
    digest = hashlib.sha256(changes or b"")
    names = sorted(name for name in (new or b"").split(b"\0") if name)
    for name in names:
        path = root / os.fsdecode(name)
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    dirty = bool(changes or names)
    return {
        "sha": sha.decode().strip() if sha else None,
        "dirty": dirty,
        "diff_sha256": digest.hexdigest() if dirty else None,
    }


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Version by distribution name; those not installed are omitted."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """``cpu`` (model), ``cores`` (usable), ``memory_gib`` and ``gpus`` (names)."""
    import torch

    usable = getattr(os, "sched_getaffinity", None)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> int | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return round(total / 2**30)


def describe_hardware(facts: dict[str, Any]) -> str:
    """One phrase for a caption, e.g. ``NVIDIA H200, 16 CPU cores (AMD EPYC 9534)``."""
    machine = facts.get("hardware") or {}
    cores = machine.get("cores")
    cpu = f"{cores} CPU core{'s' if cores != 1 else ''} ({machine.get('cpu')})" if cores else ""
    gpus = machine.get("gpus") or []
    counted = [f"{gpus.count(g)}x {g}" if gpus.count(g) > 1 else g for g in dict.fromkeys(gpus)]
    return ", ".join(part for part in (*counted, cpu) if part)


def describe_versions(facts: dict[str, Any]) -> str:
    """One phrase for a caption, e.g. ``commit 1a2b3c4d (modified), python 3.12, torch 2.9``."""
    git, packages = facts.get("git") or {}, facts.get("packages") or {}
    parts = []
    if git.get("sha"):
        parts.append(f"commit {git['sha'][:8]}" + (" (modified)" if git.get("dirty") else ""))
    if facts.get("python"):
        parts.append(f"python {facts['python']}")
    shown = ("ssdistill", "torch", "timm", "onnxruntime")
    return ", ".join(parts + [f"{name} {packages[name]}" for name in shown if name in packages])
