"""The files of an encoder's folder: which there are, and whether they are what they should be."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError

FORMAT = 1
DESCRIPTION = "model.json"
TORCH_WEIGHTS, ONNX_WEIGHTS = "model.safetensors", "model.onnx"
PROJECTOR_WEIGHTS = "projector.safetensors"


def find_artifact(path: Path) -> Path:
    """The folder of an encoder: ``path``, that of the file ``path``, or the only one below it.

    Raises:
        UserError: no encoder there, or several.
    """
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    if path.is_file():
        path = path.parent
    if (path / DESCRIPTION).is_file():
        return path
    below = sorted({p.parent for p in path.rglob(DESCRIPTION)})
    if len(below) > 1:
        names = ", ".join(str(p.relative_to(path)) for p in below[:4])
        raise UserError(f"{path} holds several models: choose one of {names}")
    if not below:
        raise UserError(f"no {DESCRIPTION} in {path}: it holds no saved encoder")
    return below[0]


def read_description(folder: Path) -> dict[str, Any]:
    """``model.json``, of this version's format and with the weights' ``sha256``.

    Raises:
        UserError: no such file, or one that describes no model.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"no {DESCRIPTION} in {folder}")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        version, _ = description["format"], description["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / DESCRIPTION} does not describe a model: {error!r}") from error
    if version != FORMAT:
        raise UserError(f"{folder / DESCRIPTION} has format {version}, this version reads {FORMAT}")
    return description


def read_checked(path: Path, expected: str) -> bytes:
    """The file's content, if its sha256 is the one expected."""
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is damaged or not the file of its {DESCRIPTION}: "
            f"sha256 {found[:12]}…, expected {expected[:12]}…"
        )
    return content
