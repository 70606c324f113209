"""What a node of a cluster must have in common with the process that plans the stages.

Imports nothing that takes long: it runs on every node before anything is submitted.
"""

import hashlib
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REMEDIES = {
    "python": "install the same minor version on every node",
    "torch": "install the same version on every node",
    "ssdistill": "install the same version on every node",
}


@lru_cache(maxsize=1)
def facts() -> dict[str, str]:
    """Return versions that must be the same everywhere; code is known by a hash, too."""
    try:
        torch = version("torch").partition("+")[0]  # what follows names a build for a device
    except PackageNotFoundError:
        torch = "none"
    package = f"{version('ssdistill')} ({code_sha256()[:8]})"
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "ssdistill": package, "torch": torch}


def difference(theirs: dict[str, str], ours: dict[str, str]) -> str | None:
    """Return what a node has otherwise, and what to do; None if nothing."""
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"has {name} {theirs.get(name)}, not {value}; {REMEDIES[name]}"
    return None


@contextmanager
def token_in(root: Path) -> Iterator[Path]:
    """A file in the runs folder that whoever sees the folder can find."""
    root.mkdir(parents=True, exist_ok=True)
    token = root / f".nodes-{secrets.token_hex(8)}"
    token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def node_problem(token: str | None, ours: dict[str, str]) -> str | None:
    """Return what is wrong with this node, or None; runs on the node.

    Args:
        token: a file in the runs folder; None where it is not shared.
        ours: :func:`facts` of the process that plans the stages.
    """
    if problem := difference(facts(), ours):
        return problem
    if token is None:
        return None
    root = os.path.dirname(token)
    if not os.path.exists(token):
        return f"does not see the runs folder {root}; choose one that all nodes share with --runs"
    own = f"{token}-{secrets.token_hex(4)}"
    try:
        with open(own, "w", encoding="utf-8") as file:
            file.write("x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write to the runs folder {root} ({error.strerror}); mend that"
    finally:
        if os.path.exists(own):
            os.unlink(own)
    return None


def code_sha256() -> str:
    """Return the sha256 of this package's code."""
    folder = Path(__file__).parents[2]
    sha256 = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha256.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return sha256.hexdigest()
