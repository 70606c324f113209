"""Remove duplicate initializers from an int8 ONNX file."""

from pathlib import Path
from typing import Any

CODING = ("QuantizeLinear", "DequantizeLinear")


def merge_equal_initializers(path: Path) -> int:
    """Rewrite an int8 ONNX file with equal tensors stored once and short names inside.

    A quantizer writes a scale and a zero point for every weight, bias and activation, each under
    a name that repeats the layer's. What the file computes stays the same bit by bit. Inputs,
    outputs, weights and the nodes that compute keep their names.

    Returns:
        bytes saved.
    """
    import onnx

    model, before = onnx.load(path), path.stat().st_size
    graph = model.graph
    merged = _merge_equal(graph)
    spoken = {v.name for v in (*graph.input, *graph.output)} | {""}
    spoken |= {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    inner = [tensor.name for tensor in graph.initializer]
    inner += [name for node in graph.node for name in node.output]
    inner = [name for name in inner if name not in spoken]
    free = (f"t{number}" for number in range(len(inner) + len(spoken)))
    short = dict(zip(inner, (name for name in free if name not in spoken), strict=False))
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        inputs = [merged.get(name, name) for name in node.input]
        node.input[:] = [short.get(name, name) for name in inputs]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.op_type in CODING:
            node.name = ""
    # Shapes of inner values: a runtime infers them.
    del graph.value_info[:]
    onnx.save(model, str(path))
    return before - path.stat().st_size


def _merge_equal(graph: Any) -> dict[str, str]:
    """Drop tensors equal to an earlier one; map their names to its name."""
    from onnx import numpy_helper

    first: dict[tuple, str] = {}
    merged, unique = {}, []
    for tensor in graph.initializer:
        content = tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()
        name = first.setdefault(content, tensor.name)
        if name == tensor.name:
            unique.append(tensor)
        else:
            merged[tensor.name] = name
    del graph.initializer[:]
    graph.initializer.extend(unique)
    return merged
