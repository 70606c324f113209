"""Rebuild projectors of other projects from their tensors.

Weights do not tell activations. These projects number the layers of a projector through, and
the gaps in the numbers tell where one must be: linear layer, batch norm if any, activation, and
so on, the last linear layer being followed by a batch norm at most.
"""

import re

from torch import Tensor, nn

from ssdistill.artifacts.heads import UnitLength

NAMES = {"l1": "0", "bn1": "1", "l2": "3"}
"""Numbers of the layers in a projector that names them."""
VISSL = re.compile(r"^(\d+)\.(?:clf|projection_head)\.(\d+\..*)")


class UnknownHead(Exception):
    """Tensors of an unknown head structure; the message says which."""


def build_head(
    state: dict[str, Tensor], in_dim: int, gelu: bool = False, unit_length: bool = False
) -> nn.Sequential:
    """The projector of these tensors, in eval mode.

    Args:
        state: its tensors, named ``<number of the layer>.<weight, bias, …>``.
        in_dim: width of the embedding that it takes.
        gelu: activations are GELUs instead of ReLUs.
        unit_length: its outputs are brought to unit length.

    Raises:
        UnknownHead: another structure than those of the known projects.
    """
    layers = _numbered(_joined(state))
    blocks = _blocks(layers)
    built: list[nn.Module] = []
    for number, (linear, norm) in enumerate(blocks):
        if linear["weight"].shape[1] != in_dim:
            raise UnknownHead(f"a layer has {linear['weight'].shape[1]} inputs, expected {in_dim}")
        if number:
            built.append(nn.GELU() if gelu else nn.ReLU())
        width = linear["weight"].shape[0]
        built.append(_filled(nn.Linear(in_dim, width, "bias" in linear), linear))
        if norm is not None:
            built.append(_filled(nn.BatchNorm1d(width, affine="weight" in norm), norm))
        in_dim = width
    if unit_length:
        built.append(UnitLength())
    return nn.Sequential(*built).eval()


def widths(head: nn.Sequential) -> str:
    """``512-2048-256``: of its input and of each linear layer's output."""
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    return "-".join(str(w) for w in (linear[0].in_features, *(m.out_features for m in linear)))


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join VISSL's list of heads into one MLP; all but the last end in an activation."""
    parts = {name: VISSL.match(name) for name in state}
    if not any(parts.values()):
        return state
    heads: dict[int, dict[str, Tensor]] = {}
    for name, match in parts.items():
        # What is left are prototypes.
        if match:
            heads.setdefault(int(match[1]), {})[match[2]] = state[name]
    joined, start = {}, 0
    for _, head in sorted(heads.items()):
        for name, tensor in head.items():
            number, _, rest = name.partition(".")
            joined[f"{start + int(number)}.{rest}"] = tensor
        start = max(int(name.split(".")[0]) for name in joined) + 2
    return joined


def _numbered(state: dict[str, Tensor]) -> list[tuple[int, dict[str, Tensor]]]:
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if "." not in name:
            name = f"0.{name}"
        first, _, rest = name.partition(".")
        first = NAMES.get(first, first)
        if not first.isdigit():
            raise UnknownHead(f"its layers are not numbered ('{name}')")
        layers.setdefault(int(first), {})[rest] = tensor
    return sorted(layers.items())


def _blocks(
    layers: list[tuple[int, dict[str, Tensor]]],
) -> list[tuple[dict[str, Tensor], dict[str, Tensor] | None]]:
    """(linear layer, batch norm or None) in a row."""
    blocks: list[tuple[dict[str, Tensor], dict[str, Tensor] | None]] = []
    expected = 0
    for number, layer in layers:
        if _is_linear(layer) and number == expected:
            blocks.append((layer, None))
            expected = number + 2
        elif blocks and _is_norm(layer) and blocks[-1][1] is None and number == expected - 1:
            blocks[-1] = (blocks[-1][0], layer)
            expected = number + 2
        else:
            raise UnknownHead(f"layer {number} ({', '.join(layer)}) is in an unexpected position")
    return blocks


def _is_linear(layer: dict[str, Tensor]) -> bool:
    return {"weight"} <= set(layer) <= {"weight", "bias"} and layer["weight"].ndim == 2


def _is_norm(layer: dict[str, Tensor]) -> bool:
    return "running_mean" in layer and layer["running_mean"].ndim == 1


def _filled(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing, extra = module.load_state_dict(_counted(module, state), strict=False)
    if missing or extra:
        raise UnknownHead(f"a layer with tensors {', '.join(state)} is not supported")
    return module


def _counted(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # Old files have no count of batches; it decides nothing at a fixed momentum.
    own = module.state_dict()
    return {k: v for k, v in own.items() if k == "num_batches_tracked"} | state
