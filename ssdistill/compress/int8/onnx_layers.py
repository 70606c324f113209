"""Map layers of the network to nodes of the exported ONNX graph."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import nn

from ssdistill.errors import UserError, nearest

PRODUCTS = ("Conv", "Gemm", "MatMul")
GATES = ("Sigmoid", "HardSigmoid")
POOLS = ("ReduceMean", "GlobalAveragePool")


def has_attention(net: nn.Module) -> bool:
    """Whether a module of the network is called an attention."""
    return any("attention" in type(module).__name__.lower() for module in net.modules())


def layer_nodes(graph: Any, net: nn.Module) -> dict[str, str]:
    """The Conv, Gemm or MatMul node of every convolution and linear layer, by layer name.

    A weight is known by its name in the file or, where the exporter has transposed it, by its
    values. Layers that the file lacks are ignored.

    Args:
        graph: an ``onnx.GraphProto`` whose names are the exporter's.
        net: the network; its weights are those of the file, but for batch norms folded in.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) > 1}
    free = {n.name: n.input[1] for n in graph.node
            if n.op_type in PRODUCTS and n.input[1] in weights}  # fmt: skip
    values = {name: numpy_helper.to_array(weights[name]) for name in set(free.values())}
    nodes_by_layer: dict[str, str] = {}
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for name, _ in layers:
        for node, weight in free.items():
            if weight.endswith(f"net.{name}.weight"):
                nodes_by_layer[name] = node
        free.pop(nodes_by_layer.get(name), None)
    for name, module in layers:
        if name in nodes_by_layer or not isinstance(module, nn.Linear):
            continue
        weight_IO = module.weight.detach().cpu().float().numpy().T
        for node, weight in free.items():
            if np.array_equal(values[weight], weight_IO):
                nodes_by_layer[name] = node
                del free[node]
                break
    return nodes_by_layer


def chosen_nodes(graph: Any, net: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Nodes of the layers that ``patterns`` name.

    Args:
        graph, net: as for :func:`layer_nodes`.
        patterns: names of layers or of blocks around them, ``*`` stands for anything.

    Raises:
        UserError: a pattern that fits no convolution or linear layer.
    """
    nodes = layer_nodes(graph, net)
    chosen: list[str] = []
    for pattern in patterns:
        fits = [name for name in nodes
                if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]  # fmt: skip
        if not fits:
            raise UserError(
                f"quantize.float_layers: no convolution or linear layer matches '{pattern}'"
                f"{nearest(pattern, nodes)}; correct the pattern"
            )
        chosen += [nodes[name] for name in fits]
    return chosen


def gate_nodes(graph: Any) -> list[str]:
    """Nodes of the squeeze-excite gates: mean over the map -> layers -> sigmoid -> product.

    The layers between work on one pixel: nothing is won in them, and the step of 8 bits shows
    in every channel that they scale.
    """
    maker = {output: node for node in graph.node for output in node.output}
    chosen: dict[str, None] = {}
    for product in graph.node:
        if product.op_type != "Mul":
            continue
        for name in product.input:
            gate = maker.get(name)
            path = _nodes_from_pool(gate, maker) if gate and gate.op_type in GATES else []
            if path:
                chosen.update(dict.fromkeys((*path, product.name)))
    return list(chosen)


def _nodes_from_pool(gate: Any, maker: dict[str, Any]) -> Iterable[str]:
    """Names of the nodes from a gate back to the mean it starts with; empty without one."""
    path, node = [], gate
    for _ in range(12):
        path.append(node.name)
        if node.op_type in POOLS:
            return path
        producers = [maker[name] for name in node.input if name in maker]
        # A swish inside the gate has two ways back to the same place.
        node = next((n for n in producers if n.op_type not in GATES), None)
        if node is None:
            return []
    return []
