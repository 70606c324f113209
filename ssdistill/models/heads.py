"""Projectors, predictors and regressors: training-only heads, absent from the exported student."""

from itertools import pairwise
from typing import Annotated, Literal

from lightly.models.modules.heads import ProjectionHead
from pydantic import Field
from torch import nn

from ssdistill.settings import PositiveInt, Settings

BatchNorm = Literal["none", "hidden", "all"]
Depth = Literal[1, 2, 4]
MapHead = Literal["linear", "conv", "mlp"]
LogitHead = Literal["linear", "mlp"]


class MLPSettings(Settings):
    """A head of linear layers with ReLUs between them: a method's ``projector`` or ``predictor``.

    Each method has its own defaults of these.

    Args:
        hidden_dim: width of the hidden layers; null takes the input's.
        output_dim: width of what comes out.
        depth: linear layers.
        batch_norm: which of them a batch norm follows: ``none``, the ``hidden`` ones or ``all``.
        last_affine: whether a batch norm after the last layer has a scale and a shift.
    """

    hidden_dim: PositiveInt | None = None
    output_dim: PositiveInt
    depth: Annotated[int, Field(gt=0, le=64)] = 2
    batch_norm: BatchNorm = "hidden"
    last_affine: bool = True

    def build(self, input_dim: int, output_dim: int | None = None) -> ProjectionHead:
        """The head, for vectors ``input_dim`` wide; ``output_dim`` stands in for its own."""
        hidden = [self.hidden_dim or input_dim] * (self.depth - 1)
        widths = [input_dim, *hidden, output_dim or self.output_dim]
        blocks = []
        for number, (wide, out) in enumerate(pairwise(widths), start=1):
            last = number == self.depth
            normed = self.batch_norm == "all" or (self.batch_norm == "hidden" and not last)
            norm = nn.BatchNorm1d(out, affine=self.last_affine or not last) if normed else None
            blocks.append((wide, out, norm, None if last else nn.ReLU()))
        return ProjectionHead(blocks)


class PredictorSettings(MLPSettings):
    """A head that predicts a projector's output, and so has its width."""

    output_dim: None = None


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
