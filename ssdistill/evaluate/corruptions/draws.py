"""Random numbers of an image: the same in any batch, at any severity, on any device.

They are 16-bit words cut out of the counter-based hash in ``ssdistill.data.counter_rng``. A
normal number is one of 65 536 equally likely quantiles, looked up: nothing is rounded
differently by another batch size or number of threads.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ssdistill.data.counter_rng import random_bits

WORDS = 1 << 16
PURPOSES = 32
"""Independent fields a corruption may draw for one image."""


class Draws:
    """What one corruption draws for a batch.

    Args:
        seed: of the corrupted test set.
        stream: number of the corruption: each has its own numbers.
        index_B: position of every image in its test set.
    """

    def __init__(self, seed: int, stream: int, index_B: Tensor):
        self.seed, self.stream, self.index_B = seed, stream, index_B

    def words(self, purpose: int, *shape: int) -> Tensor:
        """(B, *shape) int32, uniform in 0 … 65535; another ``purpose`` is another field."""
        count = torch.Size(shape).numel()
        view = self.stream * PURPOSES + purpose
        bits_BK = random_bits(self.seed, 0, self.index_B, view, -(-count // 4))
        words_BN = bits_BK.view(torch.int16)[:, :count].to(torch.int32)
        return words_BN.bitwise_and_(WORDS - 1).view(-1, *shape)

    def uniform(self, purpose: int, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) float64 between ``low`` and ``high``: middles of 65 536 equal parts."""
        share = self.words(purpose, *shape).double().add_(0.5).div_(WORDS)
        return share.mul_(high - low).add_(low)

    def normal(self, purpose: int, *shape: int) -> Tensor:
        """(B, *shape) float32 of mean 0 and variance 1, at most about 4.3 in size."""
        words = self.words(purpose, *shape)
        return _quantiles().to(words.device)[words.long()]

    def below(self, purpose: int, limit: int, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform in 0 … ``limit`` - 1."""
        return self.words(purpose, *shape).long().mul_(limit) >> 16


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    middle_W = (torch.arange(WORDS, dtype=torch.float64) + 0.5) / WORDS
    quantile_W = torch.special.ndtri(middle_W)
    # Middles of the outermost parts are a little too near: without this, 0.01 % are missing.
    return (quantile_W / quantile_W.square().mean().sqrt()).float()
