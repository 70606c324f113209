"""LARS: stochastic gradient descent with layer-wise adaptive rates.

By hand: timm's Lars lets the unscaled decay move a weight without gradient, clips the rate of a
zero weight, and cannot resume the checkpoints of this one; all else is equal to the last bit.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

Pushes = list[Tensor] | tuple[Tensor, ...]


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al., arXiv:1708.03888).

    For a weight w with gradient g, weight decay d and trust coefficient eta,

        r = eta |w| / (|g| + d |w| + eps),  v <- momentum v + r (g + d w),  w <- w - lr v.

    The momentum buffer holds scaled gradients without the global rate, which is applied when the
    weight moves: torch's SGD, and what lightly and solo-learn do. (The paper puts the rate into
    the buffer; the two differ only while the rate changes.) Vectors, i.e. biases and what norms
    scale and shift by, have r = 1 and no decay, as in SimCLR and BYOL. Where a weight is zero,
    r = 1; where its gradient is zero, it gets no push, not even from the decay.

    Args:
        params: parameters, or groups of them.
        lr: global learning rate.
        momentum: of v; 0 keeps no buffer.
        weight_decay: d. Unlike in lightly's LARS, 0 leaves the layer-wise rates as they are.
        trust_coefficient: eta.
        clip_lr: r becomes min(r / lr, 1), so that a weight moves at rate r, or at lr where that
            is smaller (solo-learn's option).
        nesterov: look ahead by one step of momentum.
        eps: keeps r finite.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        clip_lr: bool = False,
        nesterov: bool = False,
        eps: float = 1e-8,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip_lr": clip_lr,
            "nesterov": nesterov,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without gradient and their momenta stay unchanged."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            weights = [p for p in moving if p.ndim > 1]
            vectors = [p for p in moving if p.ndim <= 1]
            if weights:
                self._move(weights, _scaled_gradients(weights, group), group)
            if vectors:
                self._move(vectors, [p.grad for p in vectors], group)
        return loss

    def _move(self, parameters: list[Tensor], pushes: Pushes, group: dict) -> None:
        momentum = group["momentum"]
        if momentum:
            buffers = []
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffers.append(state["momentum_buffer"])
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, pushes)
            ahead = group["nesterov"]
            pushes = torch._foreach_add(pushes, buffers, alpha=momentum) if ahead else buffers
        torch._foreach_add_(parameters, pushes, alpha=-group["lr"])


def _scaled_gradients(weights: list[Tensor], group: dict) -> Pushes:
    """Return r (g + d w) for every weight, without a transfer from the device."""
    gradients = [w.grad for w in weights if w.grad is not None]
    weight_norm_K = torch.stack(torch._foreach_norm(weights))
    gradient_norm_K = torch.stack(torch._foreach_norm(gradients))
    decay = group["weight_decay"]
    rate_K = group["trust_coefficient"] * weight_norm_K
    rate_K = rate_K / (gradient_norm_K + decay * weight_norm_K + group["eps"])
    if group["clip_lr"]:
        rate_K = (rate_K / group["lr"]).clamp(max=1)
    rate_K = torch.where(weight_norm_K > 0, rate_K, 1)
    rate_K = torch.where(gradient_norm_K == 0, 0, rate_K)
    pushes = torch._foreach_add(gradients, weights, alpha=decay)
    torch._foreach_mul_(pushes, list(rate_K.unbind()))
    return pushes
