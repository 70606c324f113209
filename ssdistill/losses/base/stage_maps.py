"""Base class and parts of losses over pairs of feature maps of network stages."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses.base.maps import MapLoss, MapPair, resize_map
from ssdistill.models.representation import Outputs

Maps = list[tuple[Tensor, Tensor]]
"""(student's map, teacher's map) of every pair, from shallow to deep."""


class StageLoss(MapLoss):
    """Base class of losses that sum over pairs of maps and average over views.

    A subclass defines :meth:`pair_loss`, or :meth:`view_loss` where pairs depend on one another.
    """

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        views = zip(student, teacher, strict=True)
        return torch.stack([self.view_loss(self.pairs_of(s, t)) for s, t in views]).mean()

    def view_loss(self, maps: Maps) -> Tensor:
        """Return the loss of one view."""
        return torch.stack([self.pair_loss(k, s, t) for k, (s, t) in enumerate(maps)]).sum()

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        """Return the loss of pair ``k``."""
        raise TypeError(f"{type(self).__name__} must define pair_loss or view_loss")


def on_the_coarser_grid(s_BCHW: Tensor, t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps in float32 on the coarser of their grids, by average pooling."""
    rows = min(s_BCHW.shape[2], t_BCHW.shape[2])
    columns = min(s_BCHW.shape[3], t_BCHW.shape[3])
    with torch.autocast(s_BCHW.device.type, enabled=False):
        s_BCHW, t_BCHW = (resize_map(x.float(), (rows, columns)) for x in (s_BCHW, t_BCHW))
    return s_BCHW, t_BCHW


def spatial_attention(x_BCHW: Tensor, power: int) -> Tensor:
    """Spatial attention n(mean_c |x_c|^p), n(x) = x / |x|, (B, H W)."""
    return F.normalize(x_BCHW.abs().pow(power).mean(1).flatten(1), dim=1)


def connector(in_channels: int, out_channels: int) -> nn.Module:
    """1x1 convolution and batch norm, initialized as published for OFD (arXiv:1904.01866)."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / out_channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def deeper_counts_more(pairs: list[MapPair]) -> list[float]:
    """Return weights of the pairs: 1 for the deepest, halved for each earlier pair."""
    return [2.0 ** (k + 1 - len(pairs)) for k in range(len(pairs))]
