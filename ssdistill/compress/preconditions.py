"""Checks of a compression step's input model."""

from typing import Any

from torch import nn

from ssdistill.compress.pruning.narrow import tensors
from ssdistill.errors import UserError
from ssdistill.models.model import Model


def refuse_file(kind: str, model: Any) -> None:
    """Check that the input of a step is a PyTorch network.

    Raises:
        UserError: a file for a runtime, or no model of this package at all.
    """
    if not isinstance(model, Model) and not hasattr(model, "runtime"):
        raise UserError(
            f"{kind}: {type(model).__name__} is not a model of ssdistill; wrap it: "
            "ssdistill.encoder(module), with example=inputs if these are no images"
        )
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{kind} cannot follow quantize or export: {model.path} is a file for "
            f"{model.runtime}; place {kind} before them"
        )


def refuse_non_finite(kind: str, model: Model) -> None:
    """Check that all weights are finite.

    Raises:
        UserError: NaN or infinity in a weight; the tensor is named.
    """
    for name, tensor in tensors(model):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{kind}: tensor '{name}' of '{model.name}' contains NaN or infinity; "
                "check the weights it was loaded from"
            )


def check_input_model(kind: str, model: Any) -> None:
    """Check that the input of a step is a PyTorch network with finite weights.

    Raises:
        UserError: a file for a runtime, or a tensor that is not finite; it is named.
    """
    refuse_file(kind, model)
    refuse_non_finite(kind, model)
