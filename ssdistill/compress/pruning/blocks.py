"""Residual blocks that can be removed whole, and their importance."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.label_free.agreement import LinearCKA
from ssdistill.models.model import Model

LARGEST_BATCH = 64


def find_blocks(model: Model) -> list[str]:
    """Names of the blocks that ``nn.Identity`` can replace, in network order.

    They are modules of a list or sequence, run once on one tensor and nothing else, that add
    what they compute to that tensor.
    """
    lists = (nn.Sequential, nn.ModuleList)
    model = copy.deepcopy(model).eval()
    inside = {
        f"{name}.{key}".lstrip("."): child
        for name, module in model.net.named_modules()
        if isinstance(module, lists)
        for key, child in module.named_children()
        if not isinstance(child, lists) and next(child.children(), None) is not None
    }
    outputs: dict[str, list[Tensor | None]] = {name: [] for name in inside}
    hooks = []
    for name, module in inside.items():

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            fits = plain and isinstance(output, Tensor) and output.shape == args[0].shape
            outputs[name].append(args[0] if fits else None)

        hooks.append(module.register_forward_hook(note, with_kwargs=True))
    with torch.no_grad():
        model(model.example(2))
    for hook in hooks:
        hook.remove()
    blocks = [
        name
        for name, inputs in outputs.items()
        if len(inputs) == 1 and inputs[0] is not None and _residual(inside[name], inputs[0])
    ]
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def _residual(block: nn.Module, x: Tensor) -> bool:
    """Whether the input reaches the output through no layer with weights."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        output = block(x * 1.0)
    own_ids = {id(p) for p in block.parameters() if p.requires_grad}
    frozen = {id(p) for p in block.parameters()} - own_ids
    if frozen or not own_ids or output.grad_fn is None:
        # Without gradients to its weights a layer could not be told from an addition.
        return _residual(copy.deepcopy(block).requires_grad_(True), x) if frozen else False
    stack, visited = [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        if getattr(node, "variable", None) is x:
            return True
        above = [function for function, _ in node.next_functions if function is not None]
        if not any(_weight(function, own_ids) for function in above):
            stack.extend(above)
    return False


def _weight(node: Any, own_ids: set[int], depth: int = 3) -> bool:
    """Whether a node is one of the weights, perhaps transposed or in another shape."""
    variable = getattr(node, "variable", None)
    if variable is not None:
        return id(variable) in own_ids
    above = [function for function, _ in node.next_functions if function is not None]
    return depth > 0 and len(above) == 1 and _weight(above[0], own_ids, depth - 1)


def without(model: Model, names: Iterable[str]) -> Model:
    """Copy ``model`` with the named blocks replaced by ``nn.Identity``."""
    short, removed = copy.deepcopy(model), set(names)
    short.set_taps(())
    for name in removed:
        short.net.set_submodule(name, nn.Identity())
    order = {name: number for number, (name, _) in enumerate(short.net.named_modules())}
    short.removed = tuple(sorted({*model.removed, *removed}, key=order.__getitem__))
    keep = lambda key: not any(key.startswith(f"{name}.") for name in removed)  # noqa: E731
    short.channels = {key: value for key, value in model.channels.items() if keep(key)}
    short.coded = {key: value for key, value in short.coded.items() if keep(key)}
    short.set_taps(getattr(model, "taps", ()))
    return short


def rank_blocks(model: Model, protect: Sequence[str], x: Tensor, progress: Any) -> list[str]:
    """Rank residual blocks by the damage of removing them, least first.

    Args:
        protect: names of blocks, or of layers in blocks, that stay.
        x, progress: as for :func:`damages`.

    Raises:
        UserError: no block, or too few inputs.
    """
    blocks = [
        name
        for name in find_blocks(model)
        if not any(f"{protected}.".startswith(f"{name}.") for protected in protect)
    ]
    if not blocks:
        raise UserError(
            f"prune: '{model.name}' has no residual block whose output has the shape of its input; "
            "prune other units"
        )
    damage = damages(model, blocks, x, progress)
    return [blocks[i] for i in damage.argsort(stable=True).tolist()]


@torch.no_grad()
def damages(model: Model, blocks: Sequence[str], x: Tensor, progress: Any) -> Tensor:
    """1 - debiased CKA with the embeddings of ``model``, with just that block out, (blocks,).

    Args:
        x: unlabeled inputs.
        progress: of :class:`ssdistill.compress.Context`.

    Raises:
        UserError: fewer than four inputs.
    """
    if len(x) < 4:
        raise UserError(f"prune: units=[blocks] requires at least 4 images, got {len(x)}")
    model, damage_list = copy.deepcopy(model).eval(), []
    reference_BD = _embed(model, x)
    for name in progress(blocks, "scoring blocks"):
        cka = LinearCKA()
        cka.update(_embed(without(model, [name]), x), reference_BD)
        damage_list.append(1 - cka.compute())
    return torch.tensor(damage_list)


def _embed(model: Model, x: Tensor) -> Tensor:
    parts = [model(part).embedding_BD for part in x.to(model.device).split(LARGEST_BATCH)]
    return torch.cat(parts)
