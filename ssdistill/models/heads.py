"""Projectors, predictors and regressors: heads that training uses and the student drops."""

from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from lightly.models.modules.heads import ProjectionHead
from pydantic import Field, TypeAdapter
from torch import nn

from ssdistill.errors import UserError
from ssdistill.settings import Positive, PositiveInt, Settings

Depth = Literal[1, 2, 4]
MapHead = Literal["linear", "conv", "mlp"]
LogitHead = Literal["linear", "mlp"]


def projector(in_dim: int, out_dim: int, hidden_dim: int | None = None) -> ProjectionHead:
    """Linear-ReLU-Linear without batch norm, as in MoCo v2 (arXiv:2003.04297) and SEED.

    The hidden layer is as wide as the input unless ``hidden_dim`` says otherwise.
    """
    hidden_dim = hidden_dim or in_dim
    return ProjectionHead(
        [(in_dim, hidden_dim, None, nn.ReLU()), (hidden_dim, out_dim, None, None)]
    )


def predictor(in_dim: int, out_dim: int, hidden_dim: int) -> ProjectionHead:
    """Linear-BN-ReLU-Linear with biases, as in BYOL (arXiv:2006.07733)."""
    return ProjectionHead(
        [
            (in_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), True),
            (hidden_dim, out_dim, None, None),
        ]
    )


def regressor(in_dim: int, out_dim: int, depth: Depth) -> ProjectionHead:
    """SimReg's head (arXiv:2201.05131), of ``depth`` linear layers; hidden ones are 2 in_dim wide.

    Depth 4 is Linear-BN-ReLU-Linear twice, as published, with neither batch norm nor ReLU where
    the two halves meet. Depth 2 is one half. Depth 1 is a linear map.
    """
    if depth == 1:
        return ProjectionHead([(in_dim, out_dim, None, None)])

    def half(width: int) -> list[tuple]:
        hidden_dim = 2 * in_dim
        return [
            (in_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), True),
            (hidden_dim, width, None, None),
        ]

    return ProjectionHead(half(out_dim) if depth == 2 else half(in_dim) + half(out_dim))


def map_regressor(in_channels: int, out_channels: int, head: MapHead = "linear") -> nn.Module:
    """Maps of ``in_channels`` to maps of ``out_channels``, position by position.

    ``linear`` is a 1x1 convolution; ``conv`` one with batch norm and ReLU, as FitNets' adapters
    are coded (arXiv:1412.6550); ``mlp`` two 1x1 convolutions with a ReLU between, the hidden one
    as wide as the output.
    """
    if head == "linear":
        return nn.Conv2d(in_channels, out_channels, 1)
    if head == "conv":
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
    first = nn.Conv2d(in_channels, out_channels, 1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(out_channels, out_channels, 1))


def logit_head(in_dim: int, out_dim: int, head: LogitHead = "linear") -> ProjectionHead:
    """Vectors of ``in_dim`` to ``out_dim`` logits; ``mlp`` is :func:`projector`."""
    return regressor(in_dim, out_dim, 1) if head == "linear" else projector(in_dim, out_dim)


class LinearLayer(Settings):
    kind: Literal["linear"] = "linear"
    in_dim: PositiveInt
    out_dim: PositiveInt
    bias: bool

    def build(self) -> nn.Module:
        return nn.Linear(self.in_dim, self.out_dim, self.bias)


class BatchNormLayer(Settings):
    kind: Literal["batch_norm"] = "batch_norm"
    width: PositiveInt
    affine: bool
    eps: Positive

    def build(self) -> nn.Module:
        return nn.BatchNorm1d(self.width, self.eps, affine=self.affine)


class ReLULayer(Settings):
    kind: Literal["relu"] = "relu"

    def build(self) -> nn.Module:
        return nn.ReLU()


Layer = Annotated[LinearLayer | BatchNormLayer | ReLULayer, Field(discriminator="kind")]
LAYERS = TypeAdapter(Annotated[list[Layer], Field(min_length=1)])
"""What a head in a file consists of; plain data, so that nothing is unpickled."""


def pack_head(head: nn.Module) -> tuple[bytes, list[dict[str, Any]]]:
    """A head as safetensors and the plain description of its layers, one after the other.

    Raises:
        UserError: a head of other layers than linear ones, batch norms and ReLUs in a row.
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
        raise UserError(f"a projector of type {type(head).__name__} cannot be saved")
    return [layer for child in children for layer in _in_a_row(child)]


def _describe(layer: nn.Module) -> LinearLayer | BatchNormLayer | ReLULayer:
    if isinstance(layer, nn.Linear):
        facts = {"in_dim": layer.in_features, "out_dim": layer.out_features}
        return LinearLayer(**facts, bias=layer.bias is not None)
    if isinstance(layer, nn.BatchNorm1d):
        return BatchNormLayer(width=layer.num_features, affine=layer.affine, eps=layer.eps)
    if isinstance(layer, nn.ReLU):
        return ReLULayer()
    raise UserError(f"a projector with a layer of type {type(layer).__name__} cannot be saved")


def unpack_head(content: bytes, layers: list[Layer], in_dim: int) -> nn.Sequential:
    """The head that :func:`pack_head` wrote, bit by bit, for embeddings ``in_dim`` wide.

    Raises:
        UserError: layers that do not fit each other, or tensors that are not theirs; the reason
            reads as a predicate of the file.
    """
    try:
        state = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"is not a safetensors file: {error}") from error
    with torch.device("meta"):
        head = nn.Sequential(*(layer.build() for layer in layers)).eval()
        try:
            head(torch.empty(1, in_dim))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"has layers that do not fit each other: {reason}") from error
    for name, ours in head.state_dict().items():
        if name not in state:
            raise UserError(f"lacks '{name}'")
        found, wanted = tuple(state[name].shape), tuple(ours.shape)
        if found != wanted:
            raise UserError(f"has a '{name}' of shape {found}, not {wanted}")
    for name in state:
        if name not in head.state_dict():
            raise UserError(f"has an unknown '{name}'")
    head.load_state_dict(state, assign=True)
    return head
