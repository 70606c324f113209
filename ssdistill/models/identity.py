"""A hash that tells encoders apart by what they compute."""

import hashlib

from torch import nn

from ssdistill.models.backbones import Encoder


def encoder_sha256(encoder: Encoder) -> str:
    """Return the sha256 (hex) of an encoder's spec and of all its weights and buffers."""
    sha256 = hashlib.sha256(encoder.spec.model_dump_json().encode())
    _add(sha256, encoder.net)
    return sha256.hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """Return the sha256 (hex) of a module's layers, weights and buffers."""
    sha256 = hashlib.sha256(repr(module).encode())
    _add(sha256, module)
    return sha256.hexdigest()


def _add(sha256: "hashlib._Hash", module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
