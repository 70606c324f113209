"""Choose the parts of an image to mask, and the images of which parts are masked."""

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform

_MASK, _FRACTION = 0x6D61736B, 0x73686172
"""View numbers for random draws of patch orders, and of fractions."""


def shuffled(batch: Batch, count: int) -> Tensor:
    """Return a random permutation of 0 to ``count - 1`` for each image, (B, count) int64.

    It depends only on the step and the image, so a resumed run draws the same.
    """
    number_BN = uniform(batch.step, batch.epoch, batch.index_B, _MASK, count)
    return number_BN.argsort(dim=1, stable=True)


def random_masks(batch: Batch, view: int, count_B: Tensor, num_patches: int) -> Tensor:
    """Mask exactly ``count_B`` random patches of each image.

    Returns:
        (B, num_patches) bool, true where masked; as :func:`shuffled`, by step and image alone.
    """
    number = _MASK + ((view + 1) << 32)
    draw_BN = uniform(batch.step, batch.epoch, batch.number_B, number, num_patches)
    return draw_BN.argsort(dim=1, stable=True).argsort(dim=1) < count_B[:, None]


def mask_fractions(
    batch: Batch,
    num_views: int,
    images: float,
    fraction: tuple[float, float],
    *,
    exact: bool = False,
) -> Tensor:
    """The fraction of the patches to mask in each view of each image, 0 in those without a mask.

    Of all views in the batch, over all processes, ``int(images * views)`` get a mask. Their
    fractions lie evenly between the bounds, one in each of as many equal intervals, and are given
    to random views, as in DINOv2 (arXiv:2304.07193).

    Args:
        batch: of B images.
        num_views: V, views of each.
        images: fraction of the views that are masked.
        fraction: smallest and largest fraction of the patches.
        exact: take the upper end of each interval (DINOv3, arXiv:2508.10104) instead of a random
            place in it.

    Returns:
        (B, V) float64.
    """
    whole, rows = batch.place
    device = batch.index_B.device
    place_N = torch.arange(whole * num_views, device=device)
    draw_N2 = uniform(batch.step, batch.epoch, place_N, _FRACTION, 2)
    rank_N = draw_N2[:, 0].argsort(stable=True).argsort()
    masked = int(images * len(place_N))
    low, high = fraction
    within_N = torch.ones_like(draw_N2[:, 1]) if exact else draw_N2[:, 1]
    fraction_N = low + (high - low) * (rank_N + within_N) / max(masked, 1)
    fraction_N = torch.where(rank_N < masked, fraction_N, 0.0)
    return fraction_N.view(whole, num_views)[rows]
