"""Smaller learning rates for layers nearer to the input.

Which parameters make a layer is timm's answer. By hand is the rest: ``param_groups_layer_decay``
makes groups whose scales timm's own schedulers alone read, and decays no rate of the last layer
where the network has no classifier of its own.
"""

from typing import Any, cast

from torch import nn

from ssdistill.models.model import Model


def decayed_rates(encoder: nn.Module, decay: float, prefix: str = "") -> dict[str, float]:
    """Multiplier of every parameter's learning rate, by its name in ``encoder``.

    With L layers, number i from 0 at the input, it is decay^(L - i): the last layer of the
    encoder gets ``decay``, and a classifier on top of it 1 (BEiT, arXiv:2106.08254; MAE,
    arXiv:2111.06377, appendix A.2, counts the last normalization with the classifier).

    Args:
        prefix: put before every name.
    """
    depth = depths(encoder)
    layers = max(depth.values(), default=-1) + 1
    return {prefix + name: decay ** (layers - i) for name, i in depth.items()}


def depths(encoder: nn.Module) -> dict[str, int]:
    """Number of the layer that each parameter is in, from 0 at the input, without gaps.

    timm's networks say themselves which parameters make a layer: a residual or transformer
    block, and the stem. Compressed ones keep the names of their blocks. In other networks every
    direct child with parameters is one layer, as they come. What is beside the network (a
    projector) counts with the last layer.
    """
    net, inner = (encoder.net, "net.") if isinstance(encoder, Model) else (encoder, "")
    while not hasattr(net, "group_matcher") and len(children := _with_parameters(net)) == 1:
        # A shell around the network that has the layers.
        ((name, net),) = children.items()
        inner += f"{name}."
    depth = {inner + name: i for name, i in _layers(net).items()}
    last = max(depth.values(), default=0)
    return {name: depth.get(name, last) for name, _ in encoder.named_parameters()}


def _layers(net: nn.Module) -> dict[str, int]:
    names = [name for name, _ in net.named_parameters()]
    if not hasattr(net, "group_matcher"):
        order = {child: i for i, child in enumerate(_with_parameters(net))}
        # Parameters of the network itself, such as a class token, come in at its input.
        layer_by_name = {name: order.get(name.split(".")[0], 0) for name in names}
    else:
        from timm.models import group_parameters

        matcher = cast("Any", net).group_matcher(coarse=False)
        by_name = group_parameters(net, matcher, reverse=True)
        layer_by_name = {name: by_name[name] for name in names if name in by_name}
    # Removed blocks leave no gap.
    dense = {old: new for new, old in enumerate(sorted(set(layer_by_name.values())))}
    return {name: dense[old] for name, old in layer_by_name.items()}


def _with_parameters(net: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in net.named_children() if next(m.parameters(), None) is not None}
