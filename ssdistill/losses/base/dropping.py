"""Random teacher dropping: choose which teachers each image keeps (UNIC, arXiv:2408.05088)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.distributed import mean_over_processes


@torch.no_grad()
def kept_weights(loss_TB: Tensor, dropped_TB: Tensor) -> Tensor:
    """Weights (T, B) of teacher-image pairs: 0 if dropped, one common value otherwise.

    The teacher with which an image has the largest loss is kept whatever ``dropped_TB`` says. The
    mean over teachers and the images of all processes is 1.
    """
    worst_TB = F.one_hot(loss_TB.argmax(0), len(loss_TB)).bool().T
    kept_TB = (worst_TB | ~dropped_TB).to(loss_TB.dtype)
    return kept_TB / mean_over_processes(kept_TB.mean())
