"""Norm of each loss's gradient at the deepest layer that all of them reach."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ssdistill.distributed import world_size


class SharedLayer:
    """The deepest weight of a network at which every loss has a gradient.

    Found at the first call: a loss on an early feature map does not reach the last layers, so
    which layer is shared depends on the losses.

    Args:
        network: the encoder being trained.

    Attributes:
        name: of the weight, once found; None where no weight is reached by all.
    """

    def __init__(self, network: nn.Module):
        self._weights = {
            name: p for name, p in network.named_parameters() if p.requires_grad and p.ndim > 1
        }
        self.name: str | None = None

    def gradient_norms(
        self,
        losses: Mapping[str, Tensor],
        backward: Callable[..., None] = torch.autograd.backward,
    ) -> dict[str, Tensor]:
        """Return the norm of each loss's gradient at the shared weight, by name of the loss.

        See :meth:`gradients`.
        """
        gradient_by_loss = self.gradients(losses, backward)
        return {loss: gradient.norm() for loss, gradient in gradient_by_loss.items()}

    def gradients(
        self,
        losses: Mapping[str, Tensor],
        backward: Callable[..., None] = torch.autograd.backward,
    ) -> dict[str, Tensor]:
        """Return each loss's gradient at the shared weight, by name of the loss.

        Costs one backward pass a loss; the graph is kept. Call it before the step's own backward
        pass: every weight's ``grad`` is afterwards what it was.

        Args:
            losses: scalars, by name.
            backward: what runs a backward pass; Fabric insists on its own.

        Returns:
            those of this process's part of the batch; their mean over the processes is that of
            the whole batch.
        """
        names = [self.name] if self.name else list(self._weights)
        if not names:
            return {}
        gradients_by_loss = {}
        for loss, value in losses.items():
            if value.requires_grad:
                gradients_by_loss[loss] = self._gradients(value, names, backward)
        shared = [
            i
            for i in range(len(names))
            if all(g[i] is not None for g in gradients_by_loss.values())
        ]
        if not shared or not gradients_by_loss:
            return {}
        deepest = shared[-1]
        self.name = names[deepest]
        return {loss: gradients[deepest] for loss, gradients in gradients_by_loss.items()}

    def _gradients(
        self, loss: Tensor, names: list[str], backward: Callable[..., None]
    ) -> list[Tensor | None]:
        weights = [self._weights[name] for name in names]
        if world_size() > 1:
            # What waits for gradients to average them over processes must not notice.
            return list(torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True))
        before = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        backward(loss, inputs=weights, retain_graph=True)
        gradients = [weight.grad for weight in weights]
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
        return gradients
