"""Least squares from sums over samples: memory does not grow with the number of samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

PATIENCE = 2
"""Stop after this many successive ridges without improvement."""


class Gram:
    """Sums that determine G independent linear regressions of O outputs each on K inputs.

    Everything is float64: the normal equations square the condition number.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, x_NGK: Tensor, y_NGO: Tensor) -> None:
        """Accumulate N samples without storing them."""
        x_GNK, y_GNO = (z.double().transpose(0, 1) for z in (x_NGK, y_NGO))
        sums = (
            x_GNK.sum(1),
            y_GNO.sum(1),
            x_GNK.transpose(1, 2) @ x_GNK,
            x_GNK.transpose(1, 2) @ y_GNO,
            y_GNO.square().sum(1),
        )
        if not self.count:
            self.x_GK, self.y_GO, self.xx_GKK, self.xy_GKO, self.yy_GO = sums
        else:
            for total, part in zip(self._sums(), sums, strict=True):
                total += part
        self.count += len(x_NGK)

    def _sums(self) -> tuple[Tensor, ...]:
        return self.x_GK, self.y_GO, self.xx_GKK, self.xy_GKO, self.yy_GO

    def merge(self, other: "Gram") -> None:
        """Add the sums of ``other``."""
        for total, part in zip(self._sums(), other._sums(), strict=True):
            total += part
        self.count += other.count

    def solve(self, ridge_G: Tensor) -> tuple[Tensor, Tensor] | None:
        """The map that minimizes |x W + b - y|^2 / N + ridge s |W|^2, s the mean variance of x.

        Args:
            ridge_G: penalty of every regression, without a unit; b is not penalized.

        Returns:
            W (G, K, O) and b (G, O); None where the equations have no stable solution.
        """
        mean_GK, mean_GO = self.x_GK / self.count, self.y_GO / self.count
        gram_GKK = self.xx_GKK / self.count - mean_GK[:, :, None] * mean_GK[:, None]
        cross_GKO = self.xy_GKO / self.count - mean_GK[:, :, None] * mean_GO[:, None]
        scale_G = gram_GKK.diagonal(dim1=1, dim2=2).mean(1)
        # An input that never varies must not make its group singular.
        scale_G = scale_G.clamp(min=1e-8 * scale_G.max())
        gram_GKK.diagonal(dim1=1, dim2=2).add_((ridge_G.to(scale_G) * scale_G)[:, None])
        factor_GKK, failed_G = torch.linalg.cholesky_ex(gram_GKK)
        if failed_G.any():
            return None
        map_GKO = torch.cholesky_solve(cross_GKO, factor_GKK)
        return map_GKO, mean_GO - torch.einsum("gk,gko->go", mean_GK, map_GKO)

    def error(self, map_GKO: Tensor, bias_GO: Tensor) -> Tensor:
        """Mean of (x W + b - y)^2 by output, (G, O)."""
        product_GKO = self.xx_GKK @ map_GKO - 2 * self.xy_GKO
        linear_GO = torch.einsum("gk,gko->go", self.x_GK, map_GKO) - self.y_GO
        total_GO = self.yy_GO + (map_GKO * product_GKO).sum(1) + 2 * bias_GO * linear_GO
        return (total_GO / self.count + bias_GO.square()).clamp(min=0)


def best_map(
    fitted: Gram, held_out: Gram, ridges: Sequence[float], weight_GO: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Choose the ridge by held-out error; the zero map is a candidate.

    Ridges are tried from the strongest to the weakest, for each regression on its own, until
    ``PATIENCE`` in a row helped none; the chosen one is then fitted to all samples.

    Args:
        fitted: what the maps are fitted to; takes in the other samples as well.
        held_out: what they are judged by.
        weight_GO: how much a squared error counts, by output.

    Returns:
        W (G, K, O), b (G, O), both zero where no map is better than nothing, and the fraction of
        the error that is left on the held-out samples, 1 where no map helped.
    """
    nothing = torch.zeros_like(held_out.xy_GKO), torch.zeros_like(held_out.y_GO)
    before_G = (weight_GO * held_out.error(*nothing)).sum(1)
    best_G, ridge_G = before_G.clone(), torch.zeros_like(before_G)
    in_vain = 0
    for ridge in sorted(ridges, reverse=True):
        fitted_map = fitted.solve(torch.full_like(ridge_G, ridge))
        error_G = best_G if fitted_map is None else (weight_GO * held_out.error(*fitted_map)).sum(1)
        better_G = error_G < best_G
        best_G, ridge_G[better_G] = torch.where(better_G, error_G, best_G), ridge
        in_vain = 0 if better_G.any() else in_vain + 1
        if in_vain == PATIENCE and ridge_G.any():
            break
    if not ridge_G.any():
        return *nothing, 1.0
    fitted.merge(held_out)
    # Regressions that found nothing get some ridge so that all can be solved together.
    fitted_map = fitted.solve(torch.where(ridge_G > 0, ridge_G, 1.0))
    if fitted_map is None:
        return *nothing, 1.0
    map_GKO, bias_GO = fitted_map
    map_GKO[ridge_G == 0], bias_GO[ridge_G == 0] = 0, 0
    return map_GKO, bias_GO, (best_G.sum() / before_G.sum()).item()
