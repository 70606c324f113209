"""Linear heads side by side, and the task of training them through a frozen encoder."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdistill.data.batch import Batch
from ssdistill.train.task import Task


class Heads(nn.Module):
    """P linear classifiers of the same scaled features, all with the same first weights.

    Args:
        count: heads.
        shift_D, factor_D: features are scaled to (z - shift) * factor; None leaves them.
        unit: divide them by their length before.
    """

    shift_D: Tensor | None
    factor_D: Tensor | None

    def __init__(
        self,
        count: int,
        weight_KD: Tensor,
        bias_K: Tensor,
        shift_D: Tensor | None = None,
        factor_D: Tensor | None = None,
        unit: bool = False,
    ):
        super().__init__()
        self.weights = nn.ParameterList([weight_KD.clone() for _ in range(count)])
        self.biases = nn.ParameterList([bias_K.clone() for _ in range(count)])
        self.register_buffer("shift_D", shift_D)
        self.register_buffer("factor_D", factor_D)
        self.unit = unit

    def forward(self, z_BD: Tensor) -> Tensor:
        """Logits (B, P, K) of features as the encoder gives them."""
        if self.unit:
            z_BD = functional.normalize(z_BD, dim=1)
        if self.shift_D is not None and self.factor_D is not None:
            z_BD = (z_BD - self.shift_D) * self.factor_D
        weight_MD, bias_M = torch.cat(list(self.weights)), torch.cat(list(self.biases))
        logits_BM = functional.linear(z_BD, weight_MD, bias_M)
        return logits_BM.view(len(z_BD), len(self.weights), -1)

    def keep(self, number: int) -> None:
        """Forget every head but one."""
        self.weights, self.biases = (
            self.weights[number : number + 1],
            self.biases[number : number + 1],
        )


class HeadsTask(Task):
    """The heads in training. The encoder is called, and is no part of what trains.

    The losses are summed over the heads, so that each learns as if it were alone.

    Args:
        encode: features (B, D) of a view, without gradients.
        target_N: class of every training image.
        rates: of every head's learning rate to the largest.
    """

    num_views = 1
    target_N: Tensor

    def __init__(
        self,
        heads: Heads,
        encode: Callable[[Tensor], Tensor],
        target_N: Tensor,
        rates: Sequence[float],
    ):
        super().__init__()
        self.heads, self.encode = heads, encode
        self.register_buffer("target_N", target_N.clone(), persistent=False)
        self.rates = {
            f"heads.{part}.{number}": rate
            for number, rate in enumerate(rates)
            for part in ("weights", "biases")
        }
        self.last_embeddings = []

    @property
    def encoder(self) -> nn.Module:
        """What trains."""
        return self.heads

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        logits_BPK = self.heads(self.encode(views[0]))
        target_BP = self.target_N[batch.index_B, None].expand(-1, logits_BPK.shape[1])
        loss_BP = functional.cross_entropy(logits_BPK.mT, target_BP, reduction="none")
        return {"cross_entropy": loss_BP.mean(0).sum()}

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        return {"cross_entropy": 1.0}
