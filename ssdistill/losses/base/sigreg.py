"""How far vectors are from a standard normal distribution, slice by slice (arXiv:2511.08544)."""

import math

import torch
from torch import Tensor

from ssdistill.distributed import mean_with_gradient, world_size

T_MAX, KNOTS = 3.0, 17


def epps_pulley(x_NM: Tensor) -> Tensor:
    """The statistic of Epps and Pulley of every column against N(0, 1), (M,), in float32.

    N sum_j w_j phi_j [(mean_n cos t_j x_n - phi_j)^2 + (mean_n sin t_j x_n)^2] (arXiv:2511.08544,
    sec. 4) over 17 points t_j from 0 to 3, phi_j = exp(-t_j^2 / 2), w_j those of the trapezoidal
    rule for the integral from -3 to 3. N and the means are of the samples of all processes, each
    of which has as many. The statistic of samples from N(0, 1) does not grow with N; that of
    others does.

    Args:
        x_NM: (..., N, M) samples.

    Returns:
        (..., M).
    """
    with torch.autocast(x_NM.device.type, enabled=False):
        # At t = 0 both terms are 0.
        step = T_MAX / (KNOTS - 1)
        t_J = step * torch.arange(1, KNOTS, device=x_NM.device)
        normal_J = (-t_J.square() / 2).exp()
        weight_J = 2 * step * normal_J
        weight_J[-1] /= 2
        angle_NMJ = x_NM.float()[..., None] * t_J
        mean_2MJ = torch.stack([angle_NMJ.cos().mean(-3), angle_NMJ.sin().mean(-3)])
        cos_MJ, sin_MJ = mean_with_gradient(mean_2MJ)
        error_MJ = (cos_MJ - normal_J).square() + sin_MJ.square()
        return world_size() * x_NM.shape[-2] * (error_MJ * weight_J).sum(-1)


def directions(width: int, count: int, step: int, device: torch.device) -> Tensor:
    """Random unit vectors, (width, count) float32: new ones every step, the same everywhere."""
    generator = torch.Generator().manual_seed(step)
    direction_DM = torch.randn(width, count, generator=generator)
    return (direction_DM / direction_DM.norm(dim=0)).to(device)


def sigreg(z_ND: Tensor, direction_DM: Tensor, below: float = 0.0) -> Tensor:
    """Sketched isotropic Gaussian regularization: mean of :func:`epps_pulley` over directions.

    Args:
        z_ND: (..., N, D) vectors; the mean is also over the leading axes.
        direction_DM: unit columns, see :func:`directions`.
        below: statistics below it count as 0, without gradient.
    """
    with torch.autocast(z_ND.device.type, enabled=False):
        statistic_M = epps_pulley(z_ND.float() @ direction_DM.float())
    if below:
        statistic_M = torch.where(statistic_M < below, 0.0, statistic_M)
    return statistic_M.mean()


def expected_statistic() -> float:
    """Mean of :func:`epps_pulley` over samples of N(0, 1), whatever their number."""
    step = T_MAX / (KNOTS - 1)
    total = 0.0
    for j in range(1, KNOTS):
        t = j * step
        weight = step if j == KNOTS - 1 else 2 * step
        # Of one sample, Var(cos) + Var(sin) = 1 - phi^2.
        total += weight * math.exp(-t * t / 2) * (1 - math.exp(-t * t))
    return total
