"""The blocks of a network: what it repeats, such as residual blocks, or else its stages."""

from typing import cast

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ssdistill.models.model import Model
from ssdistill.models.taps import stage_names

LISTS = (nn.Sequential, nn.ModuleList)


def blocks_of(model: Model) -> dict[str, nn.Module]:
    """Return the blocks of a network by their names in it, in the order of the network.

    A block is a part of several layers in a list of such parts; of lists within lists, those of
    the innermost list. Where there is no such list, blocks are the stages of several layers that
    timm knows.

    Returns:
        modules of which none contains another; empty for a network without such parts.
    """
    net = model.net
    found = dict(_blocks(net, ""))
    if found:
        return found
    stages = {name: net.get_submodule(name) for name in stage_names(net)}
    return {
        name: stage
        for name, stage in stages.items()
        if _has_layers(stage)
        and not any(f"{name}.".startswith(f"{n}.") for n in stages if n != name)
    }


def _blocks(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if not _has_layers(child):
            continue
        if isinstance(module, LISTS) and not any(_is_list_of_blocks(m) for m in child.modules()):
            found.append((path, child))
        else:
            found += _blocks(child, f"{path}.")
    return found


def _is_list_of_blocks(module: nn.Module) -> bool:
    children = list(module.children())
    return isinstance(module, LISTS) and bool(children) and all(map(_has_layers, children))


def _has_layers(module: nn.Module) -> bool:
    """Whether it is a part of at least two layers."""
    return sum(isinstance(m, _ConvNd | nn.Linear) for m in cast("nn.Module", module).modules()) > 1
