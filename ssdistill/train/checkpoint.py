"""Checkpoints that are complete or absent, and unpickle nothing but tensors."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ssdistill.errors import UserError, was_interrupted
from ssdistill.files import disk_is_full

UNREADABLE = (
    EOFError,
    IsADirectoryError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
ANEW = "move it away and run the same command to train from the start"
"""Remedy for a checkpoint that cannot be resumed."""
RENAMED = {"centre_K": "center_K"}
"""Parameters and buffers that version 0.1 called otherwise, by the last part of their names."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically: a kill at any moment leaves the old or the new file.

    Raises:
        UserError: when the disk is full; the previous checkpoint is still there then.
        KeyboardInterrupt: after Ctrl-C while it is being written; likewise.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        # The second Ctrl-C does not wait for the file; torch then complains of its length.
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        if disk_is_full(error) or "write" in str(error):
            raise UserError(
                f"{path.parent}: no disk space for the checkpoint; free some and run the same "
                "command again"
            ) from error
        raise


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Load the checkpoint at ``path``; return None if there is none.

    Raises:
        UserError: for a file that is not a checkpoint, or holds more than tensors.
    """
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); {ANEW}") from error
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("task"), dict):
        _rename(checkpoint["task"])
    return checkpoint


def _rename(state: dict[str, Any]) -> None:
    """Give what version 0.1 called otherwise its present name, in place."""
    for name in [name for name in state if str(name).rpartition(".")[2] in RENAMED]:
        before, dot, last = name.rpartition(".")
        state[before + dot + RENAMED[last]] = state.pop(name)
