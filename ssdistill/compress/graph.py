"""Which channels of a network belong together, and taking them out."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning import ops as graph_ops

from ssdistill.errors import UserError
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.backbones import Encoder, encoder_from_spec
from ssdistill.models.resize import resize_like

ROOTS = (nn.Conv2d, nn.Linear)
JOINTS = (graph_ops._ConcatOp, graph_ops._SplitOp, graph_ops._SliceOp, graph_ops._ExpandOp)
KEPT_WHOLE = (graph_ops._OutputOp, graph_ops._UnbindOp)
"""The embedding itself, and queries, keys and values."""
ATTENTION = ("ScaledDotProduct", "Bmm", "Softmax")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, named by the layer that writes them.

    Attributes:
        root: module name of a convolution or linear layer whose outputs they are.
        score_C: importance of each channel, higher is kept longer.
    """

    root: str
    score_C: Tensor


def find_groups(
    encoder: Encoder,
    scope: Literal["inner", "all"],
    score: Callable[[torch_pruning.Group, int], Tensor | None],
) -> list[ChannelGroup]:
    """The removable groups of channels; the embedding's and attention's are never among them.

    Args:
        encoder: left as it is.
        scope: ``inner`` leaves out what a residual addition or a concatenation touches and what
            is not within one block; ``all`` does not.
        score: importance by channel of the n-th removable group, or None to leave it whole.

    Raises:
        UserError: an architecture whose graph cannot be traced.
    """
    model = copy.deepcopy(encoder)
    graph = _graph(model)
    names = {module: name for name, module in model.named_modules()}
    groups = []
    for group in graph.get_all_groups(root_module_types=list(ROOTS)):
        layers = [names[dep.layer] for dep, _ in group if dep.layer in names]
        if not _removable(group) or (scope == "inner" and not _inner(group, layers)):
            continue
        score_C = score(group, len(groups))
        if score_C is not None:
            groups.append(ChannelGroup(names[group[0].dep.layer], score_C.cpu()))
    return groups


def _operations(group: torch_pruning.Group) -> str:
    modules = [dep.target.module for dep, _ in group]
    return " ".join(str(m) for m in modules if isinstance(m, graph_ops._ElementWiseOp))


def _removable(group: torch_pruning.Group) -> bool:
    modules = [dep.target.module for dep, _ in group]
    if any(isinstance(m, KEPT_WHOLE) or _grouped(m) for m in modules):
        return False
    return not any(name in _operations(group) for name in ATTENTION)


def _inner(group: torch_pruning.Group, layers: list[str]) -> bool:
    joined = any(isinstance(dep.target.module, JOINTS) for dep, _ in group)
    if joined or "AddBackward" in _operations(group):
        return False
    # "net" alone is everybody's parent: only a deeper one is a block.
    return len(_common_parent(layers)) > 1


def _grouped(module: nn.Module) -> bool:
    """Channel groups would have to lose equally many channels each: such layers stay whole."""
    if isinstance(module, nn.Conv2d):
        return module.groups not in (1, module.in_channels)
    return isinstance(module, nn.GroupNorm)


def _common_parent(layers: list[str]) -> list[str]:
    """Path of the innermost module that holds all ``layers``."""
    parents = [name.split(".")[:-1] for name in layers]
    common = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def _graph(model: Encoder) -> torch_pruning.DependencyGraph:
    """The dependency graph; ``model`` is left in eval mode with trainable parameters."""
    size = model.spec.image_size
    # The tracer follows gradients: a frozen parameter would be invisible to it.
    model.eval().requires_grad_(True)
    model.set_taps(())
    images_BCHW = torch.rand(2, 3, size, size, device=model.mean.device)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(
                model,
                example_inputs=images_BCHW,
                forward_fn=lambda encoder, x_BCHW: encoder(x_BCHW).embedding_BD,
            )
    except Exception as error:  # the tracer raises whatever it stumbles upon
        raise _unsupported(model, error) from error


def remove(encoder: Encoder, groups: list[ChannelGroup], kept: list[Tensor]) -> Encoder:
    """A copy of ``encoder`` with only the ``kept`` channels of every group.

    Args:
        encoder: left as it is.
        groups: from :func:`find_groups`.
        kept: ascending channel indices, by group.

    Raises:
        UserError: an architecture in which the channels cannot be removed.
    """
    pruned = copy.deepcopy(encoder)
    graph = _graph(pruned)
    modules = dict(pruned.named_modules())
    try:
        for group, stay in zip(groups, kept, strict=True):
            width = len(group.score_C)
            gone = sorted(set(range(width)) - set(stay.tolist()))
            if gone:
                layer = modules[group.root]
                remove = graph.get_pruner_of_module(layer).prune_out_channels
                graph.get_pruning_group(layer, remove, gone).prune()
    except Exception as error:
        raise _unsupported(encoder, error) from error
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    pruned.set_taps(encoder.taps)
    return pruned.train(encoder.training)


@torch.no_grad()
def verify(encoder: Encoder, pruned: Encoder) -> None:
    """Make sure that pruning left an encoder that works and can be saved and loaded again.

    Raises:
        UserError: another embedding width, values that are not finite, no parameter fewer, or
            tensors whose widths :func:`resize_like` cannot restore.
    """
    size, was_training = encoder.spec.image_size, pruned.training
    pruned.eval()
    try:
        embedding_BD = pruned(pruned.mean.new_zeros(2, 3, size, size)).embedding_BD
    except Exception as error:
        raise _unsupported(encoder, error) from error
    pruned.train(was_training)
    if embedding_BD.shape[1] != encoder.embed_dim:
        raise _unsupported(encoder, f"the embedding shrank to {embedding_BD.shape[1]}")
    if not embedding_BD.isfinite().all():
        raise UserError(f"prune: the pruned '{encoder.spec.name}' gives non-finite embeddings")
    if count_parameters(pruned) >= count_parameters(encoder):
        raise _unsupported(encoder, "no parameter was removed")
    try:
        resize_like(encoder_from_spec(encoder.spec).net, pruned.net.state_dict())
    except UserError as error:
        raise _unsupported(encoder, f"it could not be loaded again, {error}") from error


def _unsupported(encoder: Encoder, reason: Exception | str) -> UserError:
    text = (str(reason).strip().splitlines() or [repr(reason)])[0]
    return UserError(f"prune does not support '{encoder.spec.name}': {text}")
