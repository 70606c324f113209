"""SRD: log-sum distance of batch-normed vectors (Miles and Mikolajczyk, AAAI 2024)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import all_gather_rows, gather_with_gradient
from ssdistill.losses import Loss, Shapes, vectors
from ssdistill.models.representation import Outputs

EPS = 1e-4


def log_sum(s_BD: Tensor, t_BD: Tensor, exponent: float) -> Tensor:
    """log sum_bd |s - t|^a, in float32; no gradient where the sum is below 1e-12."""
    with torch.autocast(s_BD.device.type, enabled=False):
        total = (s_BD.float() - t_BD.float()).abs().pow(exponent).sum()
        return total.clamp(min=1e-12).log()


class BatchStandardize(nn.Module):
    """Scale each component to mean 0 and variance 1 over the batch: affine-free batch norm."""

    def forward(self, x_BD: Tensor) -> Tensor:
        with torch.autocast(x_BD.device.type, enabled=False):
            var_D, mean_D = torch.var_mean(x_BD.float(), 0, correction=0)
            return (x_BD.float() - mean_D) * (var_D + EPS).rsqrt()


class SRD(Loss):
    """Log-sum distance between batch-normalized embeddings, through a linear map.

    L = log sum_bd |bn(W s) - bn(t)|^a, bn without scale or shift, over the batch of all processes
    and averaged over views (arXiv:2303.11098). The published weight is 2; the term with the
    teacher's classifier is omitted: without labels there is none.

    ```yaml
    losses:
      feature: {kind: srd, exponent: 4.0, weight: 2.0}
    ```

    Args:
        exponent: a, at least 1.
    """

    kind = "srd"
    family = "feature matching"
    paper = "Miles and Mikolajczyk, AAAI 2024, arXiv:2303.11098"
    paper_weight = 2.0
    exact_under_sharding = True

    def __init__(self, shapes: Shapes, *, exponent: Annotated[float, Field(ge=1)] = 4.0):
        super().__init__(shapes)
        self.exponent = exponent
        # The mean is taken off afterwards, so that a bias would do nothing.
        self.head = nn.Linear(shapes.student_dim, shapes.teacher_dim, bias=False)
        self.standardize = BatchStandardize()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        terms = []
        for s_BD, t_BD in zip(vectors(student), vectors(teacher), strict=True):
            s_BD = gather_with_gradient(self.head(s_BD))
            t_BD = all_gather_rows(t_BD)
            terms.append(log_sum(self.standardize(s_BD), self.standardize(t_BD), self.exponent))
        return torch.stack(terms).mean()
