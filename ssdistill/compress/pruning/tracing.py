"""Dependency graph of a network, from Torch-Pruning, as plain names and indices."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_pruning import ops as graph_ops

from ssdistill.errors import UserError
from ssdistill.models.model import Model

ROOTS = (nn.Conv2d, nn.Linear)
KNOWN = (
    nn.Conv2d,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
)
SPLITS = (graph_ops._ConcatOp, graph_ops._SplitOp, graph_ops._SliceOp)
Key = tuple[str, str, int, int]
"""Key of one channel: name of a layer in ``net``, side, axis and channel."""


@dataclass
class Part:
    """Channels that one layer writes, and everything that reads or carries them.

    Attributes:
        root: name in ``net`` of that layer.
        width: its output channels.
        elements: which of them a channel of a layer goes with.
        tied: channels that cannot go without another one.
        operations: what the channels pass through.
        unknown: why they cannot be removed; empty where they can.
    """

    root: str
    width: int
    elements: dict[Key, int] = field(default_factory=dict)
    tied: dict[int, int] = field(default_factory=dict)
    operations: list[Any] = field(default_factory=list)
    unknown: str = ""


@dataclass
class Dependencies:
    """All parts of a network, and its layers by name."""

    parts: list[Part]
    layers: dict[str, nn.Module]


def trace(model: Model) -> Dependencies:
    """Follow the channels of ``model`` on its own example.

    Args:
        model: left in eval mode with trainable parameters and without taps.

    Raises:
        UserError: a network that cannot be followed.
    """
    for name, module in model.net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"its module '{name}'" if name else "it"
            raise unsupported(model, f"{part} is TorchScript, whose layers cannot be traced")
    # The tracer follows gradients: a frozen parameter would be invisible to it.
    model.eval().requires_grad_(True)
    model.set_taps(())
    _refuse_branches(model)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Times one, so that what comes last in the network is not taken for the output.
            graph = torch_pruning.DependencyGraph().build_dependency(
                model,
                example_inputs=model.example(2),
                forward_fn=lambda model, x: model(x).embedding_BD * 1.0,
                verbose=False,
            )
            names = {module: name for name, module in model.net.named_modules()}
            names |= {parameter: name for name, parameter in model.net.named_parameters()}
            groups = graph.get_all_groups(root_module_types=list(ROOTS))
            parts = [_part(graph, group, names) for group in groups]
    except Exception as error:  # the tracer raises whatever it stumbles upon
        raise unsupported(model, error) from error
    return Dependencies(parts, {name: m for m, name in names.items() if isinstance(m, nn.Module)})


def unsupported(model: Model, reason: Exception | str) -> UserError:
    """One-line error for a network that cannot be pruned."""
    text = (str(reason).strip().splitlines() or [repr(reason)])[0]
    return UserError(f"prune does not support '{model.name}': {text}")


def _part(graph: torch_pruning.DependencyGraph, group: Any, names: dict[Any, str]) -> Part:
    root = group[0].dep
    part = Part(names.get(root.target.module, ""), len(group[0].idxs))
    for dependency, _ in group:
        module = dependency.target.module
        if module in names:
            if type(module) is not nn.Parameter and not _is_prunable_layer(module):
                part.unknown = f"{names[module]} is a {type(module).__name__}"
        else:
            part.operations.append(dependency.target)
    if any(isinstance(node.module, SPLITS) for node in part.operations):
        # Halves that are multiplied by each other go together, which one whole group hides.
        for unit in range(part.width):
            closure = graph.get_pruning_group(root.target.module, root.handler, [unit])
            for key, _ in _elements(graph, closure, names):
                other = part.elements.setdefault(key, unit)
                if other != unit:
                    part.tied[unit] = other
    else:
        part.elements = dict(_elements(graph, group, names))
    return part


def _elements(graph: torch_pruning.DependencyGraph, group: Any, names: dict[Any, str]) -> Any:
    for item in group:
        module, name = item.dep.target.module, names.get(item.dep.target.module)
        if name is None:
            continue
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        axis = item.dep.target.pruning_dim if type(module) is nn.Parameter else 0
        for channel, unit in zip(item.idxs, item.root_idxs, strict=True):
            yield (name, "out" if out else "in", axis, channel), unit
            if isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1:
                # The tracer takes both sides of a depthwise convolution for one.
                yield (name, "in" if out else "out", axis, channel), unit


def _is_prunable_layer(module: nn.Module) -> bool:
    """Whether it is a layer whose channels can be removed, with the tensors such a layer has."""
    if not isinstance(module, KNOWN) or (isinstance(module, nn.LayerNorm) and _deep(module)):
        return False
    return set(module._parameters) <= {"weight", "bias"}


def _deep(norm: nn.LayerNorm) -> bool:
    return len(norm.normalized_shape) > 1


class _Watch(TorchDispatchMode):
    """Record the module in which a tensor's value became a Python number, to branch on."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = [""]
        self.branching: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function is torch.ops.aten._local_scalar_dense.default and self.branching is None:
            self.branching = self.running[-1]
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def _refuse_branches(model: Model) -> None:
    """Reject data-dependent branches, of which a trace sees only one."""
    watch, hooks = _Watch(), []

    def leave(*_: Any) -> None:
        watch.running.pop()

    for name, module in model.net.named_modules():
        enter = lambda *_, name=name: watch.running.append(name)  # noqa: E731
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave))
    try:
        x = model.example(2)
        with watch:
            model(x)
    except Exception as error:  # whatever the network raises
        prefix = f"its module '{watch.running[-1]}' fails: " if watch.running[-1] else ""
        raise unsupported(model, f"{prefix}{error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if watch.branching is not None:
        part = f"its module '{watch.branching}'" if watch.branching else "it"
        raise unsupported(model, f"{part} has control flow that depends on its inputs")
