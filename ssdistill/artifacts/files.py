"""Files of a model's folder: find them, write them, verify their sha256."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ssdistill.artifacts.description import DESCRIPTION, FORMAT, REMEDY, read_description
from ssdistill.errors import UserError, no_file, shortened
from ssdistill.files import user_path, write_atomically

ONNX_WEIGHTS = "model.onnx"
PROJECTOR_WEIGHTS = "projector.safetensors"
MOST_ENTRIES = 100_000
"""Files and folders among which a model is looked for."""


def find_artifact(path: str | Path) -> Path:
    """The folder of an encoder: ``path``, that of the file ``path``, or the only one below it.

    Raises:
        UserError: no encoder there, several, or a place that cannot be looked at.
    """
    path = user_path(path)
    try:
        return _find(path)
    except (OSError, ValueError, RuntimeError) as error:  # of a name too long, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot open {shortened(path, 300)} ({reason}); check the path") from error


def _find(path: Path) -> Path:
    if not path.exists():
        broken = " (broken symbolic link)" if path.is_symlink() else ""
        raise UserError(no_file(path, hint=broken))
    if not path.is_dir():
        if path.name != DESCRIPTION and not names_file(path.parent, path.name):
            raise UserError(f"{shortened(path, 300)} is no file of a saved model; name its folder")
        path = path.parent
    if (path / DESCRIPTION).is_file():
        return path
    below = _described_below(path)
    if len(below) > 1:
        names = ", ".join(str(p.relative_to(path)) for p in below[:4])
        raise UserError(f"{path} contains several models: specify one of {names}")
    if not below:
        raise UserError(
            f"no {DESCRIPTION} in {path}: not the folder of a saved model; name one that is"
        )
    return below[0]


def _described_below(folder: Path) -> list[Path]:
    """The folders below with a description; the search does not go through a whole disk."""
    described, seen = [], 0
    for place, folders, files in os.walk(folder):
        seen += 1 + len(folders) + len(files)
        if seen > MOST_ENTRIES:
            raise UserError(
                f"{folder} holds more than {MOST_ENTRIES} files: name the model's folder"
            )
        if DESCRIPTION in files and (Path(place) / DESCRIPTION).is_file():
            described.append(Path(place))
    return sorted(described)


def names_file(folder: Path, name: str) -> bool:
    """Whether a ``model.json`` in ``folder``, damaged or not, says that ``name`` is its file."""
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        named = description.get("files") or [description.get("weights")]
        return name in named
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def weight_files(folder: str | Path) -> list[Path]:
    """The files that a user of the model in ``folder`` ships, beside ``model.json``.

    Raises:
        UserError: no model there.
    """
    return [Path(folder) / name for name in read_description(Path(folder)).names]


def sha256_of(files: dict[str, bytes]) -> str:
    """Return the sha256 that identifies the weights.

    Of several files, it is that of the lines ``<sha256>  <name>``, sorted by name, as ``sha256sum``
    prints them.
    """
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if len(sums) == 1:
        return next(iter(sums.values()))
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_artifact(
    folder: Path,
    files: dict[str, bytes],
    head: bytes | None,
    description: dict[str, Any],
) -> str:
    """Write all files of a model, the description last, and drop those of the one before it.

    Args:
        files: content by name of the files that hold the weights, the one to open first.
        head: content of the projector's file, if there is to be one.
        description: what ``model.json`` says beside the format, the files and their sha256.

    Returns:
        :func:`sha256_of` the ``files``.

    Raises:
        UserError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        before = read_description(folder).names
    except UserError:
        before = {}
    sha256 = sha256_of(files)
    described = {"format": FORMAT, "weights": next(iter(files)), "sha256": sha256}
    if len(files) > 1:
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        described["files"] = sums
    for name, content in files.items():
        write_atomically(folder / name, content)
    if head is not None:
        write_atomically(folder / PROJECTOR_WEIGHTS, head)
    text = json.dumps(described | description, indent=2)
    write_atomically(folder / DESCRIPTION, text.encode() + b"\n")
    for name in {*before, *([] if head is not None else [PROJECTOR_WEIGHTS])} - {*files}:
        (folder / name).unlink(missing_ok=True)
    return sha256


def description_sha256(folder: Path) -> str:
    """sha256, in hexadecimal, of the ``model.json`` in ``folder``."""
    return hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()


def read_checked(path: Path, expected: str) -> bytes:
    """Read a file and verify its sha256.

    Raises:
        UserError: no file (but a folder, a pipe, a broken link), one that cannot be read, or
            another one than was saved.
    """
    try:
        if not path.is_file():
            found = " (it is a folder)" if path.is_dir() else ""
            raise UserError(f"no {path.name} in {path.parent}{found}; {REMEDY}")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror or error}); check its permissions"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"{path} does not fit in memory; close other programs, or open it elsewhere"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is corrupt or does not belong to its {DESCRIPTION}: "
            f"sha256 {found[:12]}…, expected {expected[:12]}…; {REMEDY}"
        )
    return content
