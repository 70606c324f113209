"""Pack a model's weights and compressed structure into one file and facts, and unpack them."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ssdistill.artifacts.coding.codes import Coded
from ssdistill.artifacts.coding.file import current, pack_state, unpack_state
from ssdistill.artifacts.description import (
    CODED_WEIGHTS,
    DESCRIPTION,
    REMEDY,
    TORCH_WEIGHTS,
    Description,
)
from ssdistill.artifacts.files import read_checked
from ssdistill.errors import UserError
from ssdistill.models.downloads import reason
from ssdistill.models.model import Model
from ssdistill.models.structure import fit_structure

MISFITS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError,
           ZeroDivisionError)  # fmt: skip
"""What tensors of shapes that no compression has left behind end in."""


def pack_weights(model: Model) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the content of the file of weights, and the facts that ``model.json`` keeps of them.

    The file is ``model.safetensors``, or ``model.coded.safetensors`` where weights are coded.
    Facts are ``widths``: the shapes of tensors that the uncompressed network has not, or has in
    another shape; and, where there are any, ``channels`` and ``removed`` as in
    :class:`~ssdistill.models.model.Model` and ``coded``: bytes in the file by how they are
    written.

    Raises:
        UserError: a state dict with an entry that is no tensor.
    """
    state = model.net.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"cannot save '{model.name}': '{key}' is not a tensor")
    dense = model.fresh_net().state_dict()
    shapes = {key: tensor.shape for key, tensor in dense.items()}
    facts: dict[str, Any] = {
        "widths": {k: list(v.shape) for k, v in state.items() if v.shape != shapes.get(k)}
    }
    if model.channels:
        facts["channels"] = {
            k: [int(i) for i in channels] for k, channels in model.channels.items()
        }
    if model.removed:
        facts["removed"] = list(model.removed)
    if coded := current(state, model.coded):
        content, facts["coded"] = pack_state(state, coded)
        return {CODED_WEIGHTS: content}, facts
    # safetensors refuses channels_last tensors and tensors that share memory.
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
             for k, v in state.items()}  # fmt: skip
    return {TORCH_WEIGHTS: safetensors.torch.save(state)}, facts


def unpack_weights(model: Model, folder: Path, description: Description) -> None:
    """Turn an uncompressed ``model`` into the one whose weights lie in ``folder``.

    Raises:
        UserError: a missing, damaged or foreign file; the first key or shape at fault is named.
    """
    path = folder / description.first
    state, coded = _read(path, description.names[description.first])
    removed = description.removed
    try:
        if description.widths or removed:
            fit_structure(model.net, state, removed)
        _check_keys(model, state)
        model.net.load_state_dict(state, strict=True)
    except UserError as error:
        raise UserError(
            f"{path} does not match the '{model.name}' in its {DESCRIPTION}: {error}; {REMEDY}"
        ) from None
    except MISFITS as error:
        raise UserError(
            f"{path} does not match the '{model.name}' in its {DESCRIPTION}: {reason(error)}; "
            f"{REMEDY}"
        ) from error
    model.channels, model.removed, model.coded = description.channels, tuple(removed), coded


def _read(path: Path, sha256: str) -> tuple[dict[str, Tensor], dict[str, Coded]]:
    content = read_checked(path, sha256)
    if path.name == CODED_WEIGHTS:
        try:
            return unpack_state(content)
        except UserError as error:
            raise UserError(f"cannot read {path}: {error}; {REMEDY}") from error
    try:
        return safetensors.torch.load(content), {}
    except Exception as error:  # beside its own, whatever a header that is not valid ends in
        raise UserError(f"{path} is not a safetensors file: {reason(error)}; {REMEDY}") from error


def _check_keys(model: Model, state: dict[str, Tensor]) -> None:
    network_state = model.net.state_dict()
    for key in network_state:
        if key not in state:
            raise UserError(f"it lacks '{key}'")
    for key in state:
        if key not in network_state:
            raise UserError(f"it has an unknown '{key}'")
    for key, expected in network_state.items():
        if expected.shape != state[key].shape:
            shapes = (
                f"{tuple(state[key].shape)} in the file but {tuple(expected.shape)} in the network"
            )
            raise UserError(f"tensor '{key}' has shape {shapes}")
        if expected.is_floating_point() != state[key].is_floating_point():
            raise UserError(
                f"tensor '{key}' is {state[key].dtype} in the file but {expected.dtype} in the "
                "network"
            )
        if (
            expected.is_floating_point()
            and expected.isfinite().all()
            and not state[key].isfinite().all()
        ):
            raise UserError(f"tensor '{key}' contains NaN or infinity")
