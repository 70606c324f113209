"""FT: factor transfer (Kim et al., NeurIPS 2018, arXiv:1802.04977)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, MapPair
from ssdistill.losses.base.stage_maps import StageLoss, on_the_coarser_grid, spatial_attention
from ssdistill.settings import NonNegative, Positive


def factor_difference(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """mean_(b,i) |f_bi(s) - f_bi(t)| with f(x) = n(mean_c x_c^2) over the positions, in float32.

    The finer factor is averaged onto the grid of the coarser.
    """
    with torch.autocast(s_BCHW.device.type, enabled=False):
        s_BCHW, t_BCHW = on_the_coarser_grid(s_BCHW, t_BCHW)
        return (spatial_attention(s_BCHW, 2) - spatial_attention(t_BCHW, 2)).abs().mean()


def three_convolutions(widths: tuple[int, int, int, int], norm: bool) -> nn.Sequential:
    """3x3 convolutions between the ``widths``, with LeakyReLU(0.1) and optional batch norm."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(widths):
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


class Factors(nn.Module):
    """Paraphraser (an autoencoder of the teacher's map) and translator of the student's map."""

    def __init__(self, pair: MapPair, rate: float):
        super().__init__()
        student_width, teacher_width = pair.student_shape[0], pair.teacher_shape[0]
        width = max(1, int(rate * teacher_width))
        self.paraphraser = three_convolutions(
            (teacher_width, teacher_width, width, width), norm=False
        )
        self.back = three_convolutions((width, width, teacher_width, teacher_width), norm=False)
        self.translator = three_convolutions(
            (student_width, student_width, width, width), norm=True
        )

    def forward(self, s_BCHW: Tensor, t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (factor difference, mean squared error of the reconstructed teacher map)."""
        factor_BCHW = self.paraphraser(t_BCHW)
        again_BCHW = self.back(factor_BCHW)
        difference = factor_difference(self.translator(s_BCHW), factor_BCHW.detach())
        return difference, F.mse_loss(again_BCHW.float(), t_BCHW.float())


class FT(StageLoss):
    """Match factors: a translation of the student's map and a paraphrase of the teacher's.

    L = mean_(b,i) |f_bi(T(s)) - f_bi(P(t))| + r mean (P'(P(t)) - t)^2, f(x) = n(mean_c x_c^2)
    over the positions i, n(x) = x / |x|; P, P' and T are three 3x3 convolutions each
    (arXiv:1802.04977).

    The paper first trains the paraphraser P with its inverse P' for 30 epochs and then fixes it.
    Here there is one training: P learns to summarize the teacher from the first step on, by the
    second term alone, while the student follows by the first. With stride 1 the paper's
    transposed convolutions in P' are convolutions. The factors are compared as published in
    code, squared before the mean over channels.

    ```yaml
    losses:
      factor: {kind: ft, maps: last, weight: 200.0}
    ```

    Args:
        maps: which maps are paired, see :class:`ssdistill.losses.base.maps.MapLoss`.
        rate: channels of the factor, as a fraction of the teacher's.
        reconstruction: r. The default is 1 / 200: with the published weight of 200 the
            paraphraser learns as it does in the paper's first stage.

    Raises:
        UserError: a network without feature maps, or without the one named.
    """

    kind = "ft"
    family = "attention and intermediate"
    paper = "Kim et al., NeurIPS 2018, arXiv:1802.04977"
    accumulates = True
    paper_weight = 200.0

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        rate: Positive = 0.5,
        reconstruction: NonNegative = 0.005,
    ):
        super().__init__(shapes, maps)
        self.reconstruction = reconstruction
        self.factors = nn.ModuleList(Factors(pair, rate) for pair in self.map_pairs)

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        difference, error = self.factors[k](s_BCHW, t_BCHW)
        return difference + self.reconstruction * error
