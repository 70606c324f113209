"""Taps: intermediate values of a timm network that an encoder can return.

They are named after modules: ``layer3`` is the feature map of a stage, ``before_relu:layer3``
that map before the ReLU which closes the stage, and ``attention:blocks.11`` what the class token
of a transformer's block attends to. ``final:patches``, see
:mod:`ssdistill.models.final_patches`, is no module: it is what the network pools.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ssdistill.models.class_attention import catch_class_attention, class_token_attention

ATTENTION, BEFORE_RELU = "attention:", "before_relu:"


def stage_names(net: nn.Module) -> list[str]:
    """Network stages with a feature map, from shallow to deep; none where timm gives no access."""
    if not hasattr(net, "forward_intermediates"):
        return []
    return [info["module"] for info in getattr(net, "feature_info", None) or ()]


def stage_maps(
    net: nn.Module, x_BCHW: Tensor, names: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``forward_features`` returns, and the maps (B, C, H, W) of some stages by name."""
    known = stage_names(net)
    # timm returns maps in depth order, whatever the order of `indices`.
    indices = sorted(known.index(name) for name in names)
    final, maps = cast("Any", net).forward_intermediates(
        x_BCHW, indices=indices, norm=False, output_fmt="NCHW"
    )
    return final, {known[i]: m for i, m in zip(indices, maps, strict=True)}


@dataclass(frozen=True)
class Closing:
    """The ReLU that closes a network stage and the batch norm before it, by module name.

    ``norm`` is the last one defined before the ReLU with as many channels: in a residual block
    that of the residual branch.
    """

    relu: str
    norm: str | None


@torch.no_grad()
def closing_relus(net: nn.Module, x_BCHW: Tensor) -> dict[str, Closing]:
    """Stages whose map is what their last ReLU returns, found by encoding ``x_BCHW``.

    ``net`` must be in eval mode and the images not all alike: a map of zeros tells nothing.
    """
    stages = stage_names(net)
    stages_of = {
        name: [stage for stage in stages if f"{name}.".startswith(f"{stage}.")]
        for name, module in net.named_modules()
        if isinstance(module, nn.ReLU)
    }
    last_relu: dict[str, str] = {}
    inputs: dict[str, Tensor] = {}

    def remember(name: str, relu: nn.Module, inputs_of_relu: tuple[Tensor]) -> None:
        for stage in stages_of[name]:
            last_relu[stage], inputs[stage] = name, inputs_of_relu[0].clone()

    handles = [
        net.get_submodule(name).register_forward_pre_hook(partial(remember, name))
        for name in stages_of
        if stages_of[name]
    ]
    if not handles:
        return {}
    try:
        maps = stage_maps(net, x_BCHW, stages)[1]
    finally:
        for handle in handles:
            handle.remove()
    return {
        stage: Closing(last_relu[stage], _norm_before(net, last_relu[stage], maps[stage].shape[1]))
        for stage in stages
        if stage in last_relu and torch.equal(inputs[stage].relu(), maps[stage])
    }


def closing_relus_at(encoder: Any, size: Sequence[int]) -> dict[str, Closing]:
    """:func:`closing_relus` of an encoder's network, found with noise of that height and width."""
    generator = torch.Generator().manual_seed(0)
    noise_BCHW = torch.randn(1, encoder.spec.in_chans, *size, generator=generator)
    with looking(encoder):
        return closing_relus(encoder.net, noise_BCHW.to(encoder.mean))


def _norm_before(net: nn.Module, relu: str, channels: int) -> str | None:
    norm_name = None
    for name, module in net.named_modules():
        if name == relu:
            break
        wide = isinstance(module, _BatchNorm) and module.num_features == channels
        if wide and module.affine:
            norm_name = name
    return norm_name


def norm_outputs(net: nn.Module, closing: dict[str, Closing]) -> dict[str, tuple[Tensor, Tensor]]:
    """(mean_C, std_C) that the batch norm before a closing ReLU gives its output, by network stage.

    They are its bias and the size of its weight.
    """
    norms = {
        stage: cast("_BatchNorm", net.get_submodule(c.norm))
        for stage, c in closing.items()
        if c.norm
    }
    return {
        stage: (norm.bias.detach().clone(), norm.weight.detach().abs())
        for stage, norm in norms.items()
    }


@contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients, and restore the mode afterwards."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


# An object, not a closure: a deep copy of the network must fill the copy's dictionary.
class _CatchInput:
    def __init__(self, caught: dict[str, Tensor], name: str):
        self.caught, self.name = caught, name

    def __call__(self, relu: nn.Module, args: tuple[Tensor, ...]) -> None:
        # timm's ReLUs work in place.
        self.caught[self.name] = args[0].clone()


def catch(
    net: nn.Module, names: Iterable[str], closing: dict[str, Closing], caught: dict[str, Tensor]
) -> list[RemovableHandle]:
    """Record the values of taps with a colon in ``caught`` on each forward pass.

    Returns:
        handles that end it.
    """
    handles = []
    for name in names:
        if name.startswith(BEFORE_RELU):
            relu = net.get_submodule(closing[name.removeprefix(BEFORE_RELU)].relu)
            handles.append(relu.register_forward_pre_hook(_CatchInput(caught, name)))
        elif name.startswith(ATTENTION):
            attention = class_token_attention(net)[name.removeprefix(ATTENTION)]
            handles += catch_class_attention(attention, caught, name)
    return handles
