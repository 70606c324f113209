"""Layers whose inputs differ between a pruned network and the uncompressed one."""

import copy
from typing import cast

from torch import Tensor, nn

from ssdistill.compress import Context
from ssdistill.compress.fitting.calls import Call, layers_of
from ssdistill.compress.preconditions import refuse_file
from ssdistill.errors import UserError
from ssdistill.measure.before_after import agreed_on
from ssdistill.models.model import Model


def inputs_of(layer: nn.Module) -> int:
    """How many channels a convolution or linear layer reads."""
    return cast("Tensor", layer.weight).shape[1] * getattr(layer, "groups", 1)


def is_depthwise(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) > 1 and cast("Tensor", layer.weight).shape[1] == 1


def consumers(
    pruned: Model, dense: Model, calls: dict[str, list[Call]], depthwise: bool
) -> dict[str, str]:
    """Find layers with changed inputs, and their names in ``dense``.

    Those are layers with fewer inputs, the last factor of a factorized layer and, after a block
    that was removed, the next layer and the next one that ends in a residual addition.

    Args:
        calls: the calls of all layers of ``dense``, in the order of execution.
        depthwise: whether depthwise convolutions are among them.
    """
    pruned_layers, dense_layers = layers_of(pruned.net), layers_of(dense.net)
    pairs = {}
    for name, layer in dense_layers.items():
        counterpart = pruned_layers.get(name)
        if counterpart is None and f"{name}.expand" in pruned_layers:
            pairs[f"{name}.expand"] = name
        elif counterpart is not None and inputs_of(counterpart) != inputs_of(layer):
            pairs[name] = name
    for block in set(pruned.removed) - set(dense.removed):
        inside = [name.startswith(f"{block}.") for name in calls]
        if any(inside):
            last = len(inside) - 1 - inside[::-1].index(True)
            after = [name for name in list(calls)[last + 1 :] if name in pruned_layers]
            ends = [name for name in after if calls[name][0].stream_NO is not None]
            pairs.update((name, name) for name in (*after[:1], *ends[:1]))
    return {n: d for n, d in pairs.items() if depthwise or not is_depthwise(pruned_layers[n])}


def kept_outputs(pruned: Model, dense: Model, name: str, counterpart: str) -> Tensor:
    """Indices of the outputs of layer ``counterpart`` of ``dense`` that ``name`` still has.

    Raises:
        UserError: ``pruned.channels`` does not say.
    """
    width, dense_width = (
        len(cast("Tensor", net.get_submodule(layer).weight))
        for net, layer in ((pruned.net, name), (dense.net, counterpart))
    )
    available = dense.channels.get(counterpart, range(dense_width))
    if width == len(available):
        return Tensor([*range(width)]).long()
    remaining = pruned.channels.get(name, pruned.channels.get(counterpart))
    if remaining is None or len(remaining) != width or not set(remaining) <= set(available):
        raise UserError(
            f"refit: the channels recorded for '{pruned.name}' do not identify the remaining "
            f"outputs of '{counterpart}'"
        )
    index_by_channel = {channel: i for i, channel in enumerate(available)}
    return Tensor([index_by_channel[channel] for channel in remaining]).long()


def comparable(calls: list[Call], counterparts: list[Call], kept_O: Tensor) -> bool:
    """Whether the outputs of two layers can be compared, sample by sample and use by use.

    Args:
        calls: of a layer of the pruned network; none where its weight was never used as it is.
        counterparts: of the same layer of the uncompressed network, on the same inputs.
        kept_O: which outputs of the counterparts are left.
    """
    return (
        0 < len(calls) == len(counterparts)
        and all(
            c.own and len(c.y_NO) == len(t.y_NO) for c, t in zip(calls, counterparts, strict=True)
        )
        and all(
            (c.stream_NO is None) == (t.stream_NO is None)
            and c.y_NO.shape[1] == len(kept_O) <= t.y_NO.shape[1]
            for c, t in zip(calls, counterparts, strict=True)
        )
    )


def likeness(model: Model, dense: Model, inputs: Tensor) -> float:
    """Debiased CKA between the embeddings of two models, computed on copies."""
    before, after = (copy.deepcopy(m).eval() for m in (dense, model))
    return agreed_on(before, after, inputs)["agree/cka"]


def dense_of(model: Model, context: Context, kind: str) -> Model:
    """The network that a step compares with: before pruning, or as it was at first.

    Raises:
        UserError: ``model`` is a file for a runtime, or there is nothing to compare it with.
    """
    refuse_file(kind, model)
    dense = context.before or context.original
    if dense is None:
        raise UserError(
            f"{kind} requires the uncompressed network: set before or original in the context"
        )
    return dense
