"""Structural similarity of feature maps (de Rijk et al., NeurIPS 2022, arXiv:2211.13133)."""

import torch
from torch import Tensor

from ssdistill.distributed import all_gather_rows
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import Regression
from ssdistill.models.heads import MapHead
from ssdistill.settings import PositiveInt

SIGMA_PER_WIDTH = 1.5 / 11
SMALLEST_RANGE = 0.1


def gaussian_windows(size: int, width: int, device: torch.device | None = None) -> Tensor:
    """(size - width + 1, size): the window at every place of a line, rows summing to 1.

    Its standard deviation is 1.5 / 11 widths.
    """
    place_P1 = torch.arange(size - width + 1, device=device)[:, None]
    offset_PS = torch.arange(size, device=device) - place_P1
    distance_PS = offset_PS - (width - 1) / 2
    weight_PS = torch.exp(-distance_PS.square() / (2 * (SIGMA_PER_WIDTH * width) ** 2))
    weight_PS = weight_PS.masked_fill((offset_PS < 0) | (offset_PS >= width), 0)
    return weight_PS / weight_PS.sum(1, keepdim=True)


def ssim(s_BCHW: Tensor, t_BCHW: Tensor, range_C: Tensor, window: int) -> Tensor:
    """Structural similarity at every place the window fits, (B, C, H - w + 1, W - w + 1).

    Wang et al., IEEE TIP 2004, eq. 13, with C1 = (0.01 L)^2 and C2 = (0.03 L)^2, L the dynamic
    range of the channel. w is ``window``, or the largest odd number that fits if that is less.
    """
    width = min(window, *s_BCHW.shape[-2:])
    width -= 1 - width % 2
    rows_PH, columns_QW = (
        gaussian_windows(size, width, s_BCHW.device) for size in s_BCHW.shape[-2:]
    )

    def local_mean(x_BCHW: Tensor) -> Tensor:
        # Two products, many times faster than a convolution of one channel at a time.
        return ((x_BCHW @ columns_QW.T).mT @ rows_PH.T).mT

    mean_s, mean_t = local_mean(s_BCHW), local_mean(t_BCHW)
    var_s = local_mean(s_BCHW.square()) - mean_s.square()
    var_t = local_mean(t_BCHW.square()) - mean_t.square()
    covariance = local_mean(s_BCHW * t_BCHW) - mean_s * mean_t
    c1_C11, c2_C11 = ((k * range_C[:, None, None]).square() for k in (0.01, 0.03))
    luminance = (2 * mean_s * mean_t + c1_C11) / (mean_s.square() + mean_t.square() + c1_C11)
    return luminance * (2 * covariance + c2_C11) / (var_s + var_t + c2_C11)


def dynamic_range(t_BCHW: Tensor) -> Tensor:
    """Largest minus smallest value of each channel over the batches of all processes, (C).

    At least a tenth of the mean over channels: a channel that never fires would have none.
    """
    high_C = all_gather_rows(t_BCHW.amax((0, 2, 3))[None]).amax(0)
    low_C = all_gather_rows(t_BCHW.amin((0, 2, 3))[None]).amin(0)
    range_C = high_C - low_C
    return range_C.clamp(min=SMALLEST_RANGE * range_C.mean()).clamp(min=1e-6)


class SSIM(Regression):
    """Structural similarity (local mean, contrast, structure) of feature maps through a head.

    L = mean (1 - SSIM(r(s), t)) over places, channels, images and maps, r a 1x1 convolution
    (arXiv:2211.13133; structural similarity from Wang et al., IEEE TIP 2004). L of a channel is its
    range in the teacher's batch. On a map smaller than the window the window shrinks; on one
    of 2 x 2 or less nothing but the mean is compared.

    ```yaml
    losses:
      structure: {kind: ssim, maps: stages, weight: 1.0}
    ```

    Args:
        maps: which maps: ``stages``, ``last``, ``middle``, ``final`` or names.
        head: r: ``linear``, ``conv`` or ``mlp``.
        window: width of the Gaussian window.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "ssim"
    paper = "de Rijk et al., NeurIPS 2022, arXiv:2211.13133"
    reads = "maps"
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "stages",
        head: MapHead = "linear",
        window: PositiveInt = 11,
    ):
        super().__init__(shapes, reads="maps", maps=maps, head=head)
        self.window = window

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return 1 - ssim(s_BCHW, t_BCHW, dynamic_range(t_BCHW), self.window)
