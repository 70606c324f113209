"""MixUp and CutMix of the views of a batch, identical for teacher and student."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.counter_rng import uniform
from ssdistill.settings import Fraction, Positive, Settings

_MIX = 0x6D6978
"""Separates these draws from others with the same seed."""

Box = tuple[float, float, float, float]
"""Top, bottom, left and right edge of a rectangle, as fractions of the image's height or width."""


class MixSettings(Settings):
    """How to mix images of a batch.

    Args:
        kind: ``mixup`` (arXiv:1710.09412) or ``cutmix`` (arXiv:1905.04899).
        alpha: of Beta(alpha, alpha), from which the fraction of the original image is drawn;
            1 is the uniform distribution.
        probability: of mixing a batch.
    """

    kind: Literal["mixup", "cutmix"] = "mixup"
    alpha: Positive = 1.0
    probability: Fraction = 1.0


@torch.no_grad()
def mix_views(views: list[Tensor], settings: MixSettings, *, seed: int, step: int) -> list[Tensor]:
    """Mix each image with another one of the batch; one fraction or rectangle per batch.

    Partner, fraction and rectangle are drawn by (seed, step) and shared by all views: views of
    different sizes get the same rectangle relative to their sides, and teacher and student see
    the same mixture of a view (arXiv:2106.05237). Several processes draw the same fraction and
    rectangle, but each mixes its own slice of the batch, so partners depend on the number of
    processes.

    Args:
        views: (B, C, h, w) float in [0, 1], of the same images; not modified.

    Returns:
        new views, or the same if the batch is not mixed.
    """
    random = np.random.default_rng((seed, step, _MIX))
    chosen, center_y, center_x = random.random(3).tolist()
    if chosen >= settings.probability:
        return list(views)
    fraction = random.beta(settings.alpha, settings.alpha)
    # Drawn separately, so that the fraction does not depend on the number of images.
    partner_B = uniform(seed, step, torch.arange(len(views[0])), _MIX, 1)[:, 0].argsort()
    box = centered_box(1.0 - fraction, center_y, center_x)
    mixed = []
    for view in views:
        other = view[partner_B.to(view.device)]
        if settings.kind == "mixup":
            mixed.append(torch.lerp(other, view, fraction))
        else:
            mixed.append(paste(view, other, box)[0])
    return mixed


def centered_box(area: float, center_y: float, center_x: float) -> Box:
    """Return CutMix's rectangle (arXiv:1905.04899, equation 2), clipped at the edges.

    It has the aspect ratio of the image.

    Args:
        area: fraction of the image that it covers unless clipped.
        center_y, center_x: of the rectangle, as fractions of height and width.
    """
    half = area**0.5 / 2
    edges = (center_y - half, center_y + half, center_x - half, center_x + half)
    return tuple(min(max(edge, 0.0), 1.0) for edge in edges)


def paste(view_BCHW: Tensor, other_BCHW: Tensor, box: Box) -> tuple[Tensor, float]:
    """Paste a rectangle of ``other_BCHW`` into ``view_BCHW``, on whole pixels.

    Returns:
        a new tensor, and the fraction of its pixels that come from ``view_BCHW``.
    """
    height, width = view_BCHW.shape[-2:]
    rows = slice(round(box[0] * height), round(box[1] * height))
    columns = slice(round(box[2] * width), round(box[3] * width))
    pasted_BCHW = view_BCHW.clone()
    pasted_BCHW[..., rows, columns] = other_BCHW[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return pasted_BCHW, 1.0 - area / (height * width)
