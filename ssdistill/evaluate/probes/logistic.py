"""Many logistic regressions at once: one pass over the features serves all of them.

By hand: scikit-learn fits one problem at a time, on the CPU, to an array in memory. Here strengths,
folds and labels share each pass, and features lie on a GPU or in a file larger than the memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ssdistill.label_free.rows import Rows

MEMORY = 20
"""Pairs of steps and gradient changes that L-BFGS remembers, ..."""
MEMORY_BYTES = 2**28
"""... or as many as fit into this, but no fewer than five."""
CHUNK = 2**19
"""Logits computed at a time: small enough for the cache, large enough for the threads."""


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """Solutions of P logistic regressions: ``theta_PKE``, intercept last, and their gradient."""

    theta_PKE: Tensor
    gradient_P: Tensor
    steps: int

    def raw(self, mean_D: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (P, K, D) and bias (P, K) for features that are not standardized."""
        weight_PKD = self.theta_PKE[..., :-1] / scale_D.double()
        bias_PK = self.theta_PKE[..., -1] - weight_PKD @ mean_D.double()
        return weight_PKD.float(), bias_PK.float()


def fit_logistic(
    rows: Rows,
    target_GN: Tensor,
    num_classes: int,
    strength_P: Tensor,
    start_PKE: Tensor | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 300,
    moments_GEE: Tensor | None = None,
) -> LogisticFit:
    """Minimize mean cross-entropy + strength / 2 * |weight|^2 for P problems side by side.

    L-BFGS (Liu and Nocedal 1989) whose first inverse Hessian is that of Böhning's bound,
    1/2 X^T X / N + strength (Böhning 1992, doi:10.1007/BF00048682): with it correlated features
    cost tens of passes, not hundreds. Passes over the data run in the dtype of the rows, the
    rest in float64. The intercept, last of the E = D + 1 numbers of a class, is not penalized.

    With several labels per row, each class has a binary logistic regression of its own: the sum of
    their cross-entropies and penalties is minimized, with Böhning's bound 1/4 X^T X / N + strength.

    Args:
        rows: features; one data set when the problems share it, else one per problem.
        target_GN: class numbers; or (G, N, K) bool, whether a row has each of K labels.
        strength_P: one L2 strength per problem.
        start_PKE: where to start; default zero.
        tolerance: stop when no entry of the gradient is larger.
        moments_GEE: :func:`moments` of these rows or of similar ones, where they are known: they
            decide how many steps it takes, not where it ends.
    """
    kind = _Problem if target_GN.ndim == 2 else _Binary
    problem = kind(rows, target_GN, num_classes, strength_P, moments_GEE)
    theta = problem.start(start_PKE)
    value_P, slope = problem.value_and_gradient(theta)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    gain_P = torch.ones_like(value_P)
    moving_P = torch.ones_like(value_P, dtype=torch.bool)
    remembered = max(5, min(MEMORY, MEMORY_BYTES // (16 * theta.numel())))
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
        memory = [*memory[1 - remembered :], (step, change, inverse_P)]
        length_P = _dot(change, problem.precondition(change))
        gain_P = torch.where(usable_P, curvature_P / length_P, gain_P)
        theta, value_P, slope = new_theta, new_value_P, new_slope
        steps += 1
    return LogisticFit(theta, slope.abs().amax((1, 2)), steps)


def chunk_logits(rows: Rows, theta_PKE: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Logits of P classifiers, in the dtype of the rows, chunk by chunk.

    Yields:
        first row, x_GnD, logits_GQKn; Q = P / G classifiers per data set.
    """
    groups, classes = rows.groups, theta_PKE.shape[1]
    theta_GME = theta_PKE.to(rows.dtype).view(groups, -1, theta_PKE.shape[2])
    weight_GMD, bias_GM1 = theta_GME[..., :-1].contiguous(), theta_GME[..., -1:]
    chunk = max(256, CHUNK // theta_PKE[..., 0].numel())
    chunk = min(chunk, rows.most)
    for start in range(0, len(rows), chunk):
        x_GnD = rows(start, start + chunk)
        logits_GMn = torch.baddbmm(bias_GM1, weight_GMD, x_GnD.mT)
        yield start, x_GnD, logits_GMn.view(groups, -1, classes, x_GnD.shape[1])


def score(rows: Rows, target_N: Tensor, theta_PKE: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy (P,) in percent and mean cross-entropy (P,) of P classifiers on one data set.

    With several labels per row, (N, K), both are means over all pairs of row and class.
    """
    hits_P = torch.zeros(len(theta_PKE), dtype=torch.float64, device=target_N.device)
    loss_P = torch.zeros_like(hits_P)
    for start, x_1nD, logits_1PKn in chunk_logits(rows, theta_PKE):
        logits_PKn, target_n = logits_1PKn[0], target_N[start : start + x_1nD.shape[1]]
        if target_n.ndim == 2:
            hits_P += ((logits_PKn > 0) == target_n.T).double().mean(1).sum(1)
            loss_P += _binary_loss(logits_PKn, target_n.T).double().mean(1).sum(1)
            continue
        hits_P += (logits_PKn.argmax(1) == target_n).sum(1)
        index_P1n = target_n.expand(len(theta_PKE), 1, -1)
        loss_P -= logits_PKn.log_softmax(1).gather(1, index_P1n).double().sum((1, 2))
    return 100 * hits_P / len(rows), loss_P / len(rows)


def moments(rows: Rows) -> Tensor:
    """X^T X / N of every data set, (G, E, E) float64, ones for the intercept included."""
    total_GEE = torch.zeros(rows.groups, rows.width + 1, rows.width + 1, dtype=torch.float64)
    total_GEE = total_GEE.to(rows.z_ND.device)
    for start in range(0, len(rows), rows.most):
        x_GnD = rows(start, start + rows.most)
        total_GEE[:, :-1, :-1] += x_GnD.mT @ x_GnD
        total_GEE[:, -1, :-1] += x_GnD.sum(1)
    total_GEE[:, :-1, -1] = total_GEE[:, -1, :-1]
    total_GEE[:, -1, -1] = len(rows)
    return total_GEE / len(rows)


def _binary_loss(logits: Tensor, target: Tensor) -> Tensor:
    return softplus(logits) - logits * target


def _dot(a_PKE: Tensor, b_PKE: Tensor) -> Tensor:
    return (a_PKE * b_PKE).sum((1, 2))


class _Problem:
    """The objective of P problems, its gradient and its preconditioner."""

    bound = 0.5
    """Largest eigenvalue of the Hessian in the logits: Böhning's, of a softmax."""

    def __init__(
        self,
        rows: Rows,
        target_GN: Tensor,
        num_classes: int,
        strength_P: Tensor,
        moments_GEE: Tensor | None = None,
    ):
        self.rows, self.target_GN = rows, target_GN
        self.shape_PKE = (len(strength_P), num_classes, rows.width + 1)
        if moments_GEE is None:
            moments_GEE = moments(rows)
        penalized_E = torch.ones_like(moments_GEE[0, 0])
        penalized_E[-1] = 0
        self.penalty_PE = strength_P.to(penalized_E)[:, None] * penalized_E
        # Dependent features leave eigenvalues that rounding may turn negative.
        self.eps = torch.finfo(rows.dtype).eps
        rounding_G1 = self.eps * moments_GEE.diagonal(dim1=1, dim2=2).sum(1)[:, None]
        bound_PEE = self.bound * moments_GEE + torch.diag_embed(self.penalty_PE + rounding_G1)
        self.factor_PEE = torch.linalg.cholesky(bound_PEE)

    def start(self, start_PKE: Tensor | None) -> Tensor:
        if start_PKE is not None:
            return start_PKE.double()
        return self.penalty_PE.new_zeros(self.shape_PKE)

    def value_and_gradient(self, theta_PKE: Tensor) -> tuple[Tensor, Tensor]:
        rows, (problems, classes, width) = self.rows, self.shape_PKE
        each = problems // rows.groups
        loss_GQ = theta_PKE.new_zeros(rows.groups, each)
        slope_GME = theta_PKE.new_zeros(rows.groups, each * classes, width)
        for start, x_GnD, logits_GQKn in chunk_logits(rows, theta_PKE):
            target = self.target_GN[:, start : start + x_GnD.shape[1]]
            chunk_GQ, error_GQKn = self.loss_and_error(logits_GQKn, target)
            loss_GQ += chunk_GQ
            error_GMn = error_GQKn.flatten(1, 2)
            slope_GME[..., :-1] += error_GMn @ x_GnD
            slope_GME[..., -1] += error_GMn.sum(2)
        penalized = theta_PKE * self.penalty_PE[:, None]
        value_P = loss_GQ.view(-1) / len(rows) + _dot(theta_PKE, penalized) / 2
        return value_P, slope_GME.view(self.shape_PKE) / len(rows) + penalized

    def loss_and_error(self, logits_GQKn: Tensor, target_Gn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a chunk, (G, Q), and its derivative by the logits."""
        # Classes before rows: softmax over an outer axis is several times faster than over a
        # short last one.
        log_p_GQKn = logits_GQKn.log_softmax(2)
        index_GQ1n = target_Gn[:, None, None].expand(-1, logits_GQKn.shape[1], 1, -1)
        loss_GQ = -log_p_GQKn.gather(2, index_GQ1n).double().sum((2, 3))
        error_GQKn = log_p_GQKn.exp_()
        error_GQKn.scatter_add_(2, index_GQ1n, -torch.ones_like(error_GQKn[:, :, :1]))
        return loss_GQ, error_GQKn

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
        """Halve the step until the value falls enough (Armijo)."""
        expected_P = _dot(slope, direction)
        length_P = moving_P.double()
        rounding_P = self.eps * value_P.abs()
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


class _Binary(_Problem):
    """A binary regression for each class, for rows that may have several labels."""

    bound = 0.25

    def loss_and_error(self, logits_GQKn: Tensor, target_GnK: Tensor) -> tuple[Tensor, Tensor]:
        target_G1Kn = target_GnK.mT[:, None].to(logits_GQKn.dtype)
        loss_GQ = _binary_loss(logits_GQKn, target_G1Kn).double().sum((2, 3))
        return loss_GQ, logits_GQKn.sigmoid() - target_G1Kn
