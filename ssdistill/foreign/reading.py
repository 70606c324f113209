"""Files of weights, read without running anything that is in them."""

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from ssdistill.errors import UserError
from ssdistill.foreign import inert

ZIP = b"PK\x03\x04"
"""How a file begins that torch takes for a zip."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        UserError: it is not there.
    """
    _check(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Any:
    """What a ``.safetensors``, torch or plain pickle file holds, on the CPU.

    Tensors and numpy arrays of numbers (as :class:`~ssdistill.foreign.inert.Array`) are kept,
    in the dicts they are in; objects of every other class come back as inert placeholders,
    and nothing that the file names is imported or called.

    Raises:
        UserError: no such file, a damaged one, or one of another kind.
    """
    _check(path)
    # A damaged pickle can fail in any way at all.
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # They are about code and protocols, which do not matter here.
        with warnings.catch_warnings(action="ignore"):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError):
                return _read_inert(path)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        if not any(map(str.isalpha, reason)):
            # A pickle's opcode, which was none.
            reason = "damaged, or no file of torch, pickle or safetensors"
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error


def _check(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no file {path}")


def _read_inert(path: Path) -> Any:
    # In memory: torch takes a file on disk for its oldest format, a tar, wherever it can.
    content = io.BytesIO(path.read_bytes())
    if content.read(4) == ZIP:
        # Of those, torch.load would run the code inside.
        if "constants.pkl" in torch._C.PyTorchFileReader(_start(content)).get_all_records():
            raise UserError(f"{path} is a TorchScript archive: save its state_dict instead")
    else:
        first = inert.load(_start(content), encoding="latin1")
        if first != torch.serialization.MAGIC_NUMBER:
            return first
    return torch.load(
        _start(content), map_location="cpu", pickle_module=inert.AS_PICKLE, weights_only=False
    )


def _start(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file
