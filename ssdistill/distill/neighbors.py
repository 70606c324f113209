"""BINGO's bags: the training images that a teacher finds most like each of them."""

import numpy as np
from torch import Tensor

from ssdistill.label_free.nearest import nearest_others


def nearest_neighbors(embedding_ND: Tensor, k: int = 5) -> np.ndarray:
    """Return the ``k`` nearest other images of each image, nearest first (arXiv:2107.01691).

    They are compared on the device of ``embedding_ND``. Of equally near images those of lower
    number come first.

    Returns:
        neighbors_NK, int64.

    Raises:
        UserError: no more than ``k`` images, or embeddings that are not finite.
    """
    return nearest_others(embedding_ND, k, progress=True).cpu().numpy()
