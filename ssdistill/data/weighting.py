"""Images that are drawn by weight, with replacement, in training."""

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

    As PyTorch's ``WeightedRandomSampler`` draws them: independently, as many in an epoch as there
    are images. But each follows from (seed, epoch, position) alone. 8 bytes an image are kept.

    Args:
        weight_N: (N,) from 0, not all 0.
    """

    def __init__(self, weight_N: np.ndarray):
        self._cumulative_N = np.cumsum(weight_N, dtype=np.float64)

    def rows(self, position_B: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return the row at each position of an epoch, (B,) int64."""
        number_B = uniform(seed, epoch, torch.from_numpy(position_B), _DRAW, 1)[:, 0].numpy()
        total = self._cumulative_N[-1]
        # Rounded up to the total, it would be beyond the last row.
        point_B = np.minimum(number_B * total, np.nextafter(total, 0))
        return np.searchsorted(self._cumulative_N, point_B, side="right")


def weigh(images: ImageSet) -> None:
    """Set the weights of a split's images, where its source has some that differ.

    They enter the fingerprint: other weights make another training.

    Raises:
        UserError: a weight that is no number from 0, or no readable image with a weight above 0.
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
    if (weight_N == weight_N[0]).all():
        return
    digest = hashlib.sha256(f"{images.fingerprint} weights ".encode())
    digest.update(np.ascontiguousarray(weight_N / weight_N.sum(), dtype="<f8").tobytes())
    images.weights, images.fingerprint = weight_N, digest.hexdigest()
    log.info(
        "%s: images are drawn by weight, with replacement; weights from %g to %g, %d of %d are 0",
        *(title, weight_N.min(), weight_N.max(), int((weight_N == 0).sum()), len(weight_N)),
    )
