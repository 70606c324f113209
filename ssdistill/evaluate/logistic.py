"""Many logistic regressions at once: one pass over the features serves all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MEMORY = 20
"""Pairs of steps and gradient changes that L-BFGS remembers."""
CHUNK = 2**19
"""Logits computed at a time: small enough for the cache, large enough for the threads."""


def standardisation(z_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature; 1 where it does not vary."""
    std_D, mean_D = torch.std_mean(z_ND, dim=0, correction=0)
    rounding_D = 1e-6 * mean_D.abs()
    return mean_D, torch.where(std_D > rounding_D, std_D, torch.ones_like(std_D))


def with_ones(x_ND: Tensor) -> Tensor:
    """(D + 1, N): features in rows and a last row of ones for the intercept."""
    return functional.pad(x_ND, (0, 1), value=1.0).mT.contiguous()


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """Solutions of P logistic regressions: ``theta_PKE``, intercept last, and their gradient."""

    theta_PKE: Tensor
    gradient_P: Tensor
    steps: int

    def raw(self, mean_D: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (P, K, D) and bias (P, K) for features that are not standardised."""
        weight_PKD = self.theta_PKE[..., :-1] / scale_D.double()
        bias_PK = self.theta_PKE[..., -1] - weight_PKD @ mean_D.double()
        return weight_PKD.float(), bias_PK.float()


def fit_logistic(
    x_GEN: Tensor,
    target_GN: Tensor,
    num_classes: int,
    strength_P: Tensor,
    start_PKE: Tensor | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 300,
) -> LogisticFit:
    """Minimise mean cross-entropy + strength / 2 * |weight|^2 for P problems side by side.

    L-BFGS (Liu and Nocedal 1989) whose first inverse Hessian is that of Böhning's bound,
    1/2 X X^T / N + strength (Böhning 1992, doi:10.1007/BF00048682): with it correlated features
    cost tens of passes, not hundreds. Passes over the data run in the dtype of ``x_GEN``, the
    rest in float64. The intercept is not penalised.

    Args:
        x_GEN: features and a last row of ones; G = 1 when the problems share their data, else P.
        target_GN: class numbers.
        strength_P: one L2 strength per problem.
        start_PKE: where to start; default zero.
        tolerance: stop when no entry of the gradient is larger.
    """
    problem = _Problem(x_GEN, target_GN, num_classes, strength_P)
    theta = problem.start(start_PKE)
    value_P, slope = problem.value_and_gradient(theta)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    gain_P = torch.ones_like(value_P)
    moving_P = torch.ones_like(value_P, dtype=torch.bool)
    steps = 0
    while steps < max_steps:
        moving_P &= slope.abs().amax((1, 2)) > tolerance
        if not moving_P.any():
            break
        direction = -problem.times_inverse(slope, memory, gain_P)
        new_theta, new_value_P, new_slope, moved_P = problem.search(
            theta, value_P, slope, direction, moving_P
        )
        # Without a decrease the problem has come down to rounding: it is as solved as it gets.
        moving_P &= moved_P
        step, change = new_theta - theta, new_slope - slope
        curvature_P = _dot(step, change)
        usable_P = curvature_P > 0
        inverse_P = torch.where(usable_P, 1 / curvature_P, 0.0)
        memory = [*memory[1 - MEMORY :], (step, change, inverse_P)]
        length_P = _dot(change, problem.precondition(change))
        gain_P = torch.where(usable_P, curvature_P / length_P, gain_P)
        theta, value_P, slope = new_theta, new_value_P, new_slope
        steps += 1
    return LogisticFit(theta, slope.abs().amax((1, 2)), steps)


def _dot(a_PKE: Tensor, b_PKE: Tensor) -> Tensor:
    return (a_PKE * b_PKE).sum((1, 2))


class _Problem:
    """The objective of P problems, its gradient and its preconditioner."""

    def __init__(self, x_GEN: Tensor, target_GN: Tensor, num_classes: int, strength_P: Tensor):
        width, self.num_rows = x_GEN.shape[1:]
        self.x_GEN, self.target_GN, self.num_classes = x_GEN, target_GN, num_classes
        self.shape_PKE = (len(strength_P), num_classes, width)
        penalised_E = torch.ones(width, dtype=torch.float64, device=x_GEN.device)
        penalised_E[-1] = 0
        self.penalty_PE = strength_P.to(penalised_E)[:, None] * penalised_E
        gram_GEE = (x_GEN @ x_GEN.mT).double() / self.num_rows
        # Dependent features leave eigenvalues that rounding may turn negative.
        rounding_G1 = (
            torch.finfo(x_GEN.dtype).eps * gram_GEE.diagonal(dim1=1, dim2=2).sum(1)[:, None]
        )
        bound_PEE = 0.5 * gram_GEE + torch.diag_embed(self.penalty_PE + rounding_G1)
        self.factor_PEE = torch.linalg.cholesky(bound_PEE)
        self.chunk = max(256, CHUNK // (len(strength_P) * num_classes))

    def start(self, start_PKE: Tensor | None) -> Tensor:
        if start_PKE is not None:
            return start_PKE.double()
        return self.penalty_PE.new_zeros(self.shape_PKE)

    def value_and_gradient(self, theta_PKE: Tensor) -> tuple[Tensor, Tensor]:
        problems, classes, width = self.shape_PKE
        groups = len(self.x_GEN)
        theta_GME = theta_PKE.to(self.x_GEN.dtype).view(groups, -1, width)
        loss_GQ = theta_PKE.new_zeros(groups, problems // groups)
        slope_GME = torch.zeros_like(theta_GME, dtype=torch.float64)
        for start in range(0, self.num_rows, self.chunk):
            x_GEn = self.x_GEN[..., start : start + self.chunk]
            target_Gn = self.target_GN[:, start : start + self.chunk]
            logits_GMn = theta_GME @ x_GEn
            # Classes before rows: softmax over an outer axis is several times faster than over
            # a short last one.
            log_p_GQKn = logits_GMn.view(groups, -1, classes, x_GEn.shape[-1]).log_softmax(2)
            index_GQ1n = target_Gn[:, None, None].expand(-1, problems // groups, 1, -1)
            loss_GQ -= log_p_GQKn.gather(2, index_GQ1n).double().sum((2, 3))
            error_GQKn = log_p_GQKn.exp_()
            error_GQKn.scatter_add_(2, index_GQ1n, -torch.ones_like(error_GQKn[:, :, :1]))
            slope_GME += error_GQKn.view_as(logits_GMn) @ x_GEn.mT
        penalised = theta_PKE * self.penalty_PE[:, None]
        value_P = loss_GQ.view(-1) / self.num_rows + _dot(theta_PKE, penalised) / 2
        return value_P, slope_GME.view(self.shape_PKE) / self.num_rows + penalised

    def precondition(self, slope_PKE: Tensor) -> Tensor:
        return torch.cholesky_solve(slope_PKE.mT, self.factor_PEE).mT

    def times_inverse(self, slope: Tensor, memory: list, gain_P: Tensor) -> Tensor:
        """L-BFGS's two loops: the inverse Hessian as remembered, times the gradient."""
        out, shares = slope, []
        for step, change, inverse_P in reversed(memory):
            shares.append(inverse_P * _dot(step, out))
            out = out - shares[-1][:, None, None] * change
        out = self.precondition(out) * gain_P[:, None, None]
        for (step, change, inverse_P), share_P in zip(memory, reversed(shares), strict=True):
            out = out + (share_P - inverse_P * _dot(change, out))[:, None, None] * step
        return out

    def search(
        self, theta: Tensor, value_P: Tensor, slope: Tensor, direction: Tensor, moving_P: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Halve the step until the value falls enough (Armijo); who does not move stays."""
        expected_P = _dot(slope, direction)
        length_P = moving_P.double()
        rounding_P = torch.finfo(self.x_GEN.dtype).eps * value_P.abs()
        for _ in range(20):
            new_theta = theta + length_P[:, None, None] * direction
            new_value_P, new_slope = self.value_and_gradient(new_theta)
            fine_P = new_value_P <= value_P + 1e-4 * length_P * expected_P + rounding_P
            if fine_P.all():
                return new_theta, new_value_P, new_slope, fine_P
            length_P = torch.where(fine_P, length_P, length_P / 2)
        length_P = torch.where(fine_P, length_P, 0.0)
        new_theta = theta + length_P[:, None, None] * direction
        return new_theta, *self.value_and_gradient(new_theta), fine_P
