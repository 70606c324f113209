"""Draw training images by weight, with replacement."""

import hashlib
import logging

import numpy as np
import torch

from ssdistill.data.counter_rng import uniform
from ssdistill.data.image_set import ImageSet
from ssdistill.errors import UserError, shown

log = logging.getLogger(__name__)

_DRAW = -3
"""View number of these random draws."""


class WeightedOrder:
    """Rows drawn in proportion to their weights, with replacement.

    As in PyTorch's ``WeightedRandomSampler``, draws are independent, and an epoch has as many as
    there are images; but each draw depends on (seed, epoch, position) alone. Takes 8 bytes per
    image.

    Args:
        weight_N: (N,) non-negative, not all 0.
    """

    def __init__(self, weight_N: np.ndarray):
        self._cumulative_N = np.cumsum(weight_N, dtype=np.float64)

    def rows(self, position_B: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return the row at each position of an epoch, (B,) int64."""
        number_B = uniform(seed, epoch, torch.from_numpy(position_B), _DRAW, 1)[:, 0].numpy()
        total = self._cumulative_N[-1]
        # A point rounded up to the total would be beyond the last row.
        point_B = np.minimum(number_B * total, np.nextafter(total, 0))
        return np.searchsorted(self._cumulative_N, point_B, side="right")


def weigh(images: ImageSet) -> None:
    """Set the weights of the images of a split, if its source has different ones.

    They are part of the fingerprint, since they change the training.

    Raises:
        UserError: a weight is negative or not a number, all readable images have weight 0, or the
            sum is infinite.
    """
    raw = images.source.split(images.split)
    weight_N = raw.weights()
    if weight_N is None:
        return
    weight_N = np.delete(weight_N, images.bad_rows)
    title = shown(raw.title)
    if not weight_N.any():
        raise UserError(
            f"{title}: all weights are 0, so no image would be drawn; correct them, or set "
            "data.weight_column=none"
        )
    with np.errstate(over="ignore"):
        total = weight_N.sum()
    if not np.isfinite(total):
        raise UserError(
            f"{title}: the weights are too large to be added, up to {weight_N.max():g}; divide all "
            "of them by the largest"
        )
    if (weight_N == weight_N[0]).all():
        return
    digest = hashlib.sha256(f"{images.fingerprint} weights ".encode())
    digest.update(np.ascontiguousarray(weight_N / total, dtype="<f8").tobytes())
    images.weights, images.fingerprint = weight_N, digest.hexdigest()
    log.info(
        "%s: drawing images by weight, with replacement; weights from %g to %g, %d of %d are 0",
        *(title, weight_N.min(), weight_N.max(), int((weight_N == 0).sum()), len(weight_N)),
    )
