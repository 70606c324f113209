"""What tells one encoder from another: the sha256 of its files, or of its numbers in memory."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssdistill.artifacts.description import DESCRIPTION
from ssdistill.artifacts.files import PROJECTOR_WEIGHTS
from ssdistill.evaluate.opening.encoders import Opened
from ssdistill.evaluate.opening.named_encoders import named_encoder

PIECE = 1 << 24
"""Bytes that are hashed at a time."""


def model_sha256(opened: Opened) -> str | None:
    """Return the sha256 (hex) of an encoder; None for a function, whose weights are unknown.

    Of a saved model it covers weights, description and projector; of a network in memory the names,
    types and numbers of its parameters and buffers.
    """
    digest = hashlib.sha256()
    if opened.files:
        if named := named_encoder(opened.source):  # which network the file's weights are of
            digest.update(f"{named.kind}:{named.name}\n".encode())
        for path in _all_files(opened.files):
            digest.update(f"{path.name}\n".encode("utf-8", "backslashreplace"))
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
        return digest.hexdigest()
    if not isinstance(opened.encoder, nn.Module):
        return None
    tensors = [*opened.encoder.named_parameters(), *opened.encoder.named_buffers()]
    digest.update(f"{opened.source} {getattr(opened.encoder, 'spec', '')}\n".encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _all_files(files: tuple[Path, ...]) -> list[Path]:
    beside = [files[0].parent / name for name in (DESCRIPTION, PROJECTOR_WEIGHTS)]
    described = beside[0].is_file()
    return [*files, *(path for path in beside if described and path.is_file())]


def _bytes(tensor: torch.Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data
