"""Bias correction of int8 ONNX files: rounded weights shift output means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ssdistill.artifacts.runtimes.tracing import quiet

INPUT = "inputs"
PRODUCTS = ("Conv", "Gemm", "MatMul")


def correct_biases(float_path: Path, int8_path: Path, inputs: Tensor) -> int:
    """Correct the biases of an int8 ONNX file in place, layer after layer.

    E[W x] - E[Wq xq] is added to the bias of every layer, with xq what the layers before it,
    already corrected, give (Nagel et al., ICCV 2019, arXiv:1906.04721, section 4.2). The bias of
    a MatMul is that of the addition behind it where that is float; others stay as they are.

    Args:
        float_path, int8_path: files with the same node names, the second in QDQ form.
        inputs: what the means are taken over.

    Returns:
        the number of layers that were corrected.
    """
    import onnx

    exact, coded = onnx.load(float_path), onnx.load(int8_path)
    node_names = {node.name for node in exact.graph.node}
    layers = [n for n in coded.graph.node if n.op_type in PRODUCTS and n.name in node_names
              and _bias_of(coded.graph, n) is not None]  # fmt: skip
    # The exporter drops biases that are zero: a fresh network may have none.
    if not layers:
        return 0
    exact_means = dict(zip((n.name for n in layers), _means(exact, layers, inputs), strict=True))
    for node in layers:
        (coded_mean_C,) = _means(coded, [node], inputs)
        _add(coded.graph, node, exact_means[node.name] - coded_mean_C)
    onnx.save(coded, str(int8_path))
    return len(layers)


def _bias_of(graph: Any, node: Any) -> tuple[Any, int, Any, Any] | None:
    """(reader, which of its inputs, int32 tensor or float tensor, scale or None) of a bias."""
    tensors = {t.name: t for t in graph.initializer}
    if node.op_type != "MatMul":
        makers = {name: n for n in graph.node for name in n.output}
        maker = makers.get(node.input[2]) if len(node.input) > 2 else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in tensors:
            return None
        return maker, 0, tensors[maker.input[0]], tensors[maker.input[1]]
    reader, name = node, node.output[0]
    for _ in range(3):
        readers = [n for n in graph.node if name in n.input]
        if len(readers) != 1:
            return None
        reader, name = readers[0], readers[0].output[0]
        if reader.op_type == "Add":
            break
    if reader.op_type != "Add":
        return None
    places = [i for i, part in enumerate(reader.input) if part in tensors]
    if not places or len(tensors[reader.input[places[0]]].dims) != 1:
        return None
    return reader, places[0], tensors[reader.input[places[0]]], None


def _add(graph: Any, node: Any, delta_C: np.ndarray) -> None:
    from onnx import numpy_helper

    bias_tensors = _bias_of(graph, node)
    assert bias_tensors is not None
    reader, place, bias, scale = bias_tensors
    bias_C = numpy_helper.to_array(bias)
    if scale is None:
        changed_C = (bias_C + delta_C).astype(bias_C.dtype)
    else:
        limits = np.iinfo(bias_C.dtype)
        steps_C = np.round(delta_C / numpy_helper.to_array(scale))
        changed_C = np.clip(bias_C + steps_C, limits.min, limits.max).astype(bias_C.dtype)
    # The exporter stores equal biases once: this layer gets one of its own.
    name = f"{node.name}_corrected_bias"
    graph.initializer.append(numpy_helper.from_array(changed_C, name))
    reader.input[place] = name


def _means(model: Any, nodes: Sequence[Any], inputs: Tensor) -> list[np.ndarray]:
    """Of each node's output per channel, float64, with every operator run as written."""
    import onnxruntime
    from onnx.utils import Extractor

    output_names = {node.name: node.output[0] for node in model.graph.node}
    with quiet():
        part = Extractor(model).extract_model([INPUT], [output_names[node.name] for node in nodes])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    sums: list[Any] = [0.0] * len(nodes)
    for batch in inputs.cpu().split(32):
        # What the nodes of a network put out are tensors, no sequences or maps.
        outputs = cast("list[np.ndarray]", session.run(None, {INPUT: batch.numpy()}))
        for i, output in enumerate(outputs):
            axis = 1 if nodes[i].op_type == "Conv" else output.ndim - 1
            averaged_axes = tuple(a for a in range(1, output.ndim) if a != axis)
            sums[i] = sums[i] + output.astype(np.float64).mean(averaged_axes).sum(0)
    return [total / len(inputs) for total in sums]
