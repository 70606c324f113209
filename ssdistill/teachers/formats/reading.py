"""Read weight files without executing any code from them."""

import hashlib
import io
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from ssdistill.errors import UserError, no_file
from ssdistill.teachers.formats import safe_unpickler as inert

ZIP = b"PK\x03\x04"
"""First bytes of a file that torch opens as a zip."""
UNPACKED, SMALL = 16, 2**20
"""Largest compression ratio of a member, and the size below which any ratio is accepted."""


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

    Tensors and numpy arrays of numbers (as
    :class:`~ssdistill.teachers.formats.safe_unpickler.Array`) are kept, in the dicts they are in;
    objects of every other class come back as inert placeholders, and nothing that the file names
    is imported or called.

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
            if not check_zip(path):
                return _read_inert(path)
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError):
                return _read_inert(path)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, MemoryError):
            reason = "it declares more data than fits in memory"
        elif "opcode" in reason or not any(map(str.isalpha, reason)):
            # Of a pickle, which it was not.
            reason = "corrupt, or not a torch, pickle or safetensors file"
        raise UserError(
            f"{path}: not a readable checkpoint ({reason}); copy it again, or save a state_dict"
        ) from error


def check_zip(path: Path) -> bool:
    """Whether torch opens a file as a zip; check the declared sizes of its members.

    Raises:
        UserError: a member is larger than it can be, or the zip is damaged.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return False
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a readable checkpoint (its zip archive is truncated or corrupt): copy "
            "it again"
        ) from error
    for member in members:
        if member.file_size > max(SMALL, UNPACKED * member.compress_size):
            raise UserError(
                f"{path}: member '{member.filename}' declares {member.file_size} bytes for "
                f"{member.compress_size} compressed ones, so it is corrupt or malicious; "
                "download it again"
            )
    total = sum(member.file_size for member in members)
    if total > max(SMALL, UNPACKED * size):
        raise UserError(
            f"{path}: its members declare {total} bytes in a file of {size}, so it is corrupt or "
            "malicious; download it again"
        )
    return True


def _check(path: Path) -> None:
    if not path.is_file():
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it")
        raise UserError(no_file(path))
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {path}: change its permissions")
    if not path.stat().st_size:
        raise UserError(f"{path}: not a readable checkpoint (it is empty): copy it again")


def _read_inert(path: Path) -> Any:
    # In memory: torch takes a file on disk for its oldest format, a tar, wherever it can.
    content = io.BytesIO(path.read_bytes())
    if content.read(4) == ZIP:
        # Of those, torch.load would run the code inside.
        if "constants.pkl" in torch._C.PyTorchFileReader(_start(content)).get_all_records():
            raise UserError(f"{path} is a TorchScript archive: save its state_dict instead")
    else:
        if tarfile.is_tarfile(_start(content)):
            raise UserError(
                f"{path}: not a readable checkpoint (a tar file, as written by PyTorch before "
                "0.1.10): load it there and save it again"
            )
        first = inert.load(_start(content), encoding="latin1")
        if first != torch.serialization.MAGIC_NUMBER:
            return first
    return torch.load(
        _start(content), map_location="cpu", pickle_module=inert.AS_PICKLE, weights_only=False
    )


def _start(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file
