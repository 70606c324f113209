"""Cross-layer equalization: channels of one layer get weights of one size, for free."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssdistill.artifacts.runtimes.tracing import Embedding, quiet
from ssdistill.models.factorized import Plain
from ssdistill.models.model import Model

CONVOLUTIONS = ("conv2d", "linear")
TRANSPARENT = ("relu", "relu_", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout",
               "identity", "alias", "contiguous")  # fmt: skip
"""Operators f with f(s x) = s f(x) for s > 0, channel by channel. A hard-swish, a GELU and a
ReLU6 are not of them."""


@dataclass(frozen=True)
class Chain:
    """What :func:`read_chains` finds.

    Attributes:
        norms: (layer, batch norm) names, the second reading nothing but the first.
        pairs: (layer, next layer) names, with nothing but :data:`TRANSPARENT` operators and such
            batch norms between them and no other reader.
    """

    norms: list[tuple[str, str]]
    pairs: list[tuple[str, str]]


@torch.no_grad()
def equalize(model: Model, rounds: int = 20) -> tuple[Model, list[tuple[str, str]]]:
    """Return an equal function with weights that are easier to quantize.

    Batch norms are folded into the layers before them (they stay, and do nothing). Of every
    pair of layers the first one's output channel i is divided by s_i and the second one's input
    channel i multiplied by it, s_i = sqrt(r1_i / r2_i) with r the largest absolute weight of the
    channel (Nagel et al., ICCV 2019, arXiv:1906.04721, eq. 11), until nothing changes.

    Args:
        model: left as it is; networks without such pairs (transformers) come back with their
            batch norms folded only.
        rounds: passes over all pairs.

    Returns:
        the equalized copy, in eval mode, and the names of the pairs.

    Raises:
        UserError: none; a network that ``torch.export`` cannot trace has no pairs.
    """
    model = copy.deepcopy(model).eval()
    chain = read_chains(model)
    layers = dict(model.net.named_modules())
    for layer, norm in chain.norms:
        fold(layers[layer], layers[norm])
    for _ in range(rounds):
        changes = [_equalize_pair(layers[a], layers[b]) for a, b in chain.pairs]
        if max(changes, default=0.0) < 1e-3:
            break
    return model, chain.pairs


@torch.no_grad()
def fold(layer: nn.Module, norm: nn.Module) -> None:
    """Move a batch norm of eval mode into the convolution or linear layer before it.

    The batch norm stays, as timm's carry their activation with them, but is the identity then.
    """
    # As read_chains finds them; one without running statistics is no batch norm of eval mode.
    layer, norm = cast("Plain", layer), cast("nn.BatchNorm2d", norm)
    mean_C, variance_C = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
    std_C = (variance_C.double() + norm.eps).sqrt()
    scale_C = (1.0 if norm.weight is None else norm.weight.double()) / std_C
    shift_C = (0.0 if norm.bias is None else norm.bias.double()) - mean_C * scale_C
    bias_C = 0.0 if layer.bias is None else layer.bias.double() * scale_C
    weight = layer.weight
    shape = (-1, *[1] * (weight.ndim - 1))
    weight.copy_(weight.double() * scale_C.view(shape))
    layer.bias = nn.Parameter((bias_C + shift_C).to(weight))
    mean_C.zero_()
    variance_C.fill_(1 - norm.eps)
    if norm.weight is not None:
        norm.weight.fill_(1)
    if norm.bias is not None:
        norm.bias.zero_()


def _equalize_pair(first: nn.Module, second: nn.Module) -> float:
    """Equalize in place; the largest change of a scale, as |log s|."""
    first, second = cast("Plain", first), cast("Plain", second)  # as read_chains finds them
    out_C = first.weight.flatten(1).abs().amax(1)
    groups = getattr(second, "groups", 1)
    # (O, C / groups, ...) of a grouped layer: its outputs come group by group, and so do inputs.
    outputs, inputs = second.weight.shape[:2]
    split = second.weight.reshape(groups, outputs // groups, inputs, -1)
    in_C = split.abs().amax((1, 3)).flatten()
    scale_C = (out_C / in_C).sqrt()
    scale_C[(out_C == 0) | (in_C == 0)] = 1
    first.weight.div_(scale_C.view(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(scale_C)
    rows = scale_C.view(groups, 1, -1, 1)
    second.weight.copy_((split * rows).view_as(second.weight))
    return float(scale_C.log().abs().max())


def read_chains(model: Model) -> Chain:
    """Follow the traced graph from every layer to what reads it.

    Layers that are used twice, and weights that are computed, are skipped.
    """
    try:
        with quiet():
            program = torch.export.export(Embedding(model), (model.example(2),))
    except Exception:  # whatever torch.export cannot trace, it says with another exception
        return Chain([], [])
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {k: v.removeprefix("model.net.")
             for k, v in tensors.items() if v.startswith("model.net.")}  # fmt: skip
    owner = {node: _owner(node, names, i) for node in program.graph.nodes
             if (i := _weight_position(node)) is not None}  # fmt: skip
    uses_by_layer = list(owner.values())
    layers = {n: name for n, name in owner.items() if name and uses_by_layer.count(name) == 1}
    norms, pairs = [], []
    for node, name in layers.items():
        if _operator(node) not in CONVOLUTIONS:
            continue
        reader = _sole_reader(node)
        if _operator(reader) == "batch_norm" and reader in layers:
            norms.append((name, layers[reader]))
            reader = _sole_reader(reader)
        while _operator(reader) in TRANSPARENT:
            reader = _sole_reader(reader)
        same = _operator(reader) == _operator(node)
        if same and reader in layers:
            pairs.append((name, layers[reader]))
    return Chain(norms, pairs)


def _operator(node: Any) -> str | None:
    if node is None or node.op != "call_function":
        return None
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else None


def _weight_position(node: Any) -> int | None:
    """Which argument of a node names the layer it is: the weight, or a norm's running mean."""
    name = _operator(node)
    return 1 if name in CONVOLUTIONS else 3 if name == "batch_norm" else None


def _owner(node: Any, names: dict[str, str], position: int) -> str | None:
    argument: Any = node.args[position] if len(node.args) > position else None
    name = names.get(getattr(argument, "name", ""))
    return name.rpartition(".")[0] if name else None


def _sole_reader(node: Any) -> Any:
    readers: Sequence[Any] = list(node.users)
    return readers[0] if len(readers) == 1 else None
