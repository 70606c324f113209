"""Bias correction: restore the output means shifted by quantized weights."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssdistill.label_free.agreement import centered_cosine
from ssdistill.models.model import Model

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CHANGE = 4.0
"""A running variance is changed by at most this factor: a channel that is dead has none."""
Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance by channel of what a module was given or gave, by its name."""


@torch.no_grad()
def correct_shifts(model: Model, reference: Model, inputs: Tensor) -> tuple[Model, bool]:
    """Correct biases and batch-norm means so that output means match those of ``reference``.

    Layer by layer in the order of the computation, each on what the corrected layers before it
    give (Nagel et al., ICCV 2019, arXiv:1906.04721, section 4.2). A layer with a bias takes the
    shift of its output into it; a batch norm takes the shift and the change of variance of its
    input into its running statistics. Layers that have other widths than in ``reference`` are
    ignored. The first half of ``inputs`` is looked at; the second decides whether it helped.

    Args:
        model: left as it is.
        reference: the model before its weights were quantized.
        inputs: at least 8 unlabeled ones; a few hundred are enough.

    Returns:
        ``model`` or a corrected copy, whichever agrees better with ``reference``; and whether
        it is the copy.
    """
    half = len(inputs) // 2
    if half < 4:
        return model, False
    was_training = model.training, reference.training
    model.eval()
    reference.eval()
    corrected = copy.deepcopy(model)
    inputs = inputs.to(model.device)
    reference_moments = _moments(reference, inputs[:half])
    with _hooked(
        corrected.net, lambda name, module: _corrector(module, reference_moments.get(name))
    ):
        corrected(inputs[:half])
    reference_BD = reference(inputs[half:]).embedding_BD
    before, after = (
        centered_cosine(m(inputs[half:]).embedding_BD, reference_BD).mean().item()
        for m in (model, corrected)
    )
    model.train(was_training[0])
    reference.train(was_training[1])
    return (corrected.train(was_training[0]), True) if after > before else (model, False)


def _moments(model: Model, inputs: Tensor) -> Moments:
    moments_by_name: Moments = {}
    calls: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> Callable[[Tensor], None]:
        def look(x: Tensor) -> None:
            calls[name] += 1
            moments_by_name[name] = _mean_and_variance(x, module)

        return look

    with _hooked(model.net, watch):
        model(inputs)
    # One bias cannot serve two places whose means differ.
    return {name: moments for name, moments in moments_by_name.items() if calls[name] == 1}


def _mean_and_variance(x: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    channels = x.ndim - 1 if isinstance(module, nn.Linear) else 1
    axes = [axis for axis in range(x.ndim) if axis != channels]
    variance_C, mean_C = torch.var_mean(x.float(), axes, correction=0)
    return mean_C, variance_C


def _corrector(
    module: nn.Module, reference_moments: tuple[Tensor, Tensor] | None
) -> Callable[[Tensor], Tensor | None]:
    def correct(x: Tensor) -> Tensor | None:
        mean_C, variance_C = _mean_and_variance(x, module)
        if reference_moments is None or reference_moments[0].shape != mean_C.shape:
            return None
        shift_C = reference_moments[0] - mean_C
        if isinstance(module, _BatchNorm):
            change_C = variance_C / reference_moments[1].clamp(min=torch.finfo(torch.float32).tiny)
            # _hooked passes over norms without running statistics, and layers without a bias.
            mean, variance = cast("Tensor", module.running_mean), cast("Tensor", module.running_var)
            mean -= shift_C.to(mean)
            variance *= change_C.clamp(1 / CHANGE, CHANGE).to(variance)
            return None
        bias = cast("Tensor", module.bias)
        bias += shift_C.to(bias)
        shape = (-1,) if isinstance(module, nn.Linear) else (-1,) + (1,) * (x.ndim - 2)
        return x + shift_C.to(x).view(shape)

    return correct


Act = Callable[[Tensor], Tensor | None]
"""What is done with a tensor; what it returns, unless None, takes the tensor's place."""


def _on_input(act: Act) -> Callable[[nn.Module, tuple[Any, ...]], Tensor | None]:
    return lambda _, args: act(args[0])


def _on_output(act: Act) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    return lambda _, __, out: act(out)


@contextmanager
def _hooked(net: nn.Module, make: Callable[[str, nn.Module], Act]) -> Iterator[None]:
    """``make(name, module)`` sees what every batch norm is given and every biased layer gives."""
    handles = []
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(_on_input(make(name, module))))
        elif isinstance(module, LAYERS) and module.bias is not None:
            handles.append(module.register_forward_hook(_on_output(make(name, module))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
