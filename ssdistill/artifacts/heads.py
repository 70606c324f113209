"""Heads on disk: safetensors and a JSON description of the layers, without pickle."""

from typing import Annotated, Any, Literal, cast

import safetensors.torch
import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.downloads import reason
from ssdistill.settings import Positive, Settings

Width = Annotated[int, Field(gt=0, le=2**31 - 1)]


class UnitLength(nn.Module):
    """Divides each row by its Euclidean length, as DINO does before its prototypes."""

    def forward(self, z_BD: Tensor) -> Tensor:
        return F.normalize(z_BD, dim=-1)


class LinearLayer(Settings):
    kind: Literal["linear"] = "linear"
    in_dim: Width
    out_dim: Width
    bias: bool

    def build(self) -> nn.Module:
        return nn.Linear(self.in_dim, self.out_dim, self.bias)


class BatchNormLayer(Settings):
    kind: Literal["batch_norm"] = "batch_norm"
    width: Width
    affine: bool
    eps: Positive

    def build(self) -> nn.Module:
        return nn.BatchNorm1d(self.width, self.eps, affine=self.affine)


class ReLULayer(Settings):
    kind: Literal["relu"] = "relu"

    def build(self) -> nn.Module:
        return nn.ReLU()


class GELULayer(Settings):
    kind: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = "none"

    def build(self) -> nn.Module:
        return nn.GELU(self.approximate)


class LayerNormLayer(Settings):
    kind: Literal["layer_norm"] = "layer_norm"
    width: Width
    affine: bool
    bias: bool
    eps: Positive

    def build(self) -> nn.Module:
        return nn.LayerNorm(self.width, self.eps, self.affine, self.bias)


class UnitLengthLayer(Settings):
    kind: Literal["unit_length"] = "unit_length"

    def build(self) -> nn.Module:
        return UnitLength()


AnyLayer = LinearLayer | BatchNormLayer | ReLULayer | GELULayer | LayerNormLayer | UnitLengthLayer
Layer = Annotated[AnyLayer, Field(discriminator="kind")]
LAYERS = TypeAdapter(Annotated[list[Layer], Field(min_length=1)])
"""Layer types that a stored head may contain, as plain data."""


def pack_head(head: nn.Module) -> tuple[bytes, list[dict[str, Any]]]:
    """A head as safetensors and the plain description of its layers, one after the other.

    Raises:
        UserError: a head of other layers than linear ones, batch and layer norms, ReLUs, GELUs
            and :class:`UnitLength` in a row.
    """
    layers = _in_a_row(head)
    state = nn.Sequential(*layers).state_dict()
    # safetensors refuses tensors that share memory.
    state = {name: value.detach().cpu().clone() for name, value in state.items()}
    return safetensors.torch.save(state), [_describe(layer).model_dump() for layer in layers]


def _in_a_row(head: nn.Module) -> list[nn.Module]:
    children = list(head.children())
    if not children:
        return [head]
    # Only of these is the order of the children known to be the order of the computation.
    if type(head).forward not in (ProjectionHead.forward, nn.Sequential.forward):
        raise UserError(
            f"cannot save a projector of type {type(head).__name__}; use an nn.Sequential"
        )
    return [layer for child in children for layer in _in_a_row(child)]


def _describe(layer: nn.Module) -> AnyLayer:
    if isinstance(layer, nn.Linear):
        width, out_dim = layer.in_features, layer.out_features
        return LinearLayer(in_dim=width, out_dim=out_dim, bias=layer.bias is not None)
    if isinstance(layer, nn.BatchNorm1d):
        return BatchNormLayer(width=layer.num_features, affine=layer.affine, eps=layer.eps)
    if isinstance(layer, nn.ReLU):
        return ReLULayer()
    if isinstance(layer, nn.GELU):
        return GELULayer(approximate=cast("Any", layer.approximate))  # checked by pydantic
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return LayerNormLayer(
            width=layer.normalized_shape[0],
            affine=layer.elementwise_affine,
            bias=layer.bias is not None,
            eps=layer.eps,
        )
    if isinstance(layer, UnitLength):
        return UnitLengthLayer()
    raise UserError(
        f"cannot save a projector with a layer of type {type(layer).__name__}; use Linear, "
        "BatchNorm1d, LayerNorm, ReLU, GELU or UnitLength"
    )


def unpack_head(content: bytes, layers: list[Layer], in_dim: int) -> nn.Sequential:
    """The head that :func:`pack_head` wrote, bit by bit, for embeddings ``in_dim`` wide.

    Raises:
        UserError: layers that do not fit each other, or tensors that are not theirs; the reason
            reads as a predicate of the file.
    """
    try:
        state = safetensors.torch.load(content)
    except Exception as error:  # beside its own, whatever a header that is not valid ends in
        raise UserError(f"is not a safetensors file: {reason(error)}") from error
    with torch.device("meta"):
        try:
            head = nn.Sequential(*(layer.build() for layer in layers)).eval()
            head(torch.empty(1, in_dim))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"has layers of incompatible widths: {reason(error)}") from error
    for name, expected in head.state_dict().items():
        if name not in state:
            raise UserError(f"lacks '{name}'")
        shape, expected_shape = tuple(state[name].shape), tuple(expected.shape)
        if shape != expected_shape:
            raise UserError(f"has a '{name}' of shape {shape}, not {expected_shape}")
    for name in state:
        if name not in head.state_dict():
            raise UserError(f"has an unknown '{name}'")
        if not state[name].is_floating_point() and not name.endswith("num_batches_tracked"):
            raise UserError(f"has a '{name}' of {state[name].dtype}, expected floating point")
    head.load_state_dict(state, assign=True)
    return head
