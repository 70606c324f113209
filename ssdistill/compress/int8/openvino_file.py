"""int8 files for OpenVINO, calibrated by NNCF."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssdistill.artifacts.runtimes.onnx_runtime import export_onnx
from ssdistill.artifacts.runtimes.openvino import OpenVino, OpenVinoModel, convert, save_graph
from ssdistill.artifacts.runtimes.signal_stack import keep_signal_stack
from ssdistill.artifacts.runtimes.tracing import quiet
from ssdistill.compress.int8.onnx_layers import chosen_nodes, gate_nodes, has_attention
from ssdistill.errors import UserError
from ssdistill.models.model import Model

FLOAT_TYPES = ["HSwish", "HSigmoid"]


def write_openvino(
    model: Model,
    path: Path,
    inputs: Tensor,
    *,
    calibration: str = "minmax",
    percentile: float = 99.999,
    reduce_range: bool = False,
    bias_correction: bool = True,
    float_layers: Sequence[str] | None = None,
) -> tuple[OpenVinoModel, dict[str, int]]:
    """Write ``model`` with int8 weights and activations as ``path`` and the ``.bin`` beside it.

    Networks with attention are treated as transformers, whose attention NNCF then leaves
    float where it is fragile.

    Args:
        model: what to write.
        path: ends in ``.xml``.
        inputs: what the ranges of the activations are taken from.
        calibration: ``minmax``, ``percentile`` or ``mse`` (NNCF's histogram search).
        percentile: in percent; used by that calibration only.
        reduce_range: half the range of 8 bits, for processors without VNNI.
        bias_correction: NNCF's fast bias correction.
        float_layers: names of layers to leave float; None for the squeeze-excite gates,
            hard-swishes and hard-sigmoids.

    Returns:
        the int8 model, and how many of its operators and weights are quantized.

    Raises:
        UserError: OpenVINO or NNCF is not installed, or nothing was quantized.
    """
    OpenVino.require()
    nncf = _require_nncf()
    import onnx
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        export_onnx(model, source)
        onnx_graph = onnx.load(source).graph
        graph = convert(source, model.name, openvino)
    auto = float_layers is None
    names = gate_nodes(onnx_graph) if auto else chosen_nodes(onnx_graph, model.net, float_layers)
    with quiet(), keep_signal_stack():
        quantized = nncf.quantize(
            graph,
            nncf.Dataset([row.numpy() for row in inputs.cpu().split(1)]),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER if has_attention(model.net) else None,
            fast_bias_correction=True,
            ignored_scope=_scope(nncf, graph, names, FLOAT_TYPES if auto else []),
            advanced_parameters=_parameters(
                nncf, calibration, percentile, reduce_range, bias_correction
            ),
        )
    counts = count_int8(quantized)
    save_graph(quantized, path)
    spec = getattr(model, "spec", None)
    return OpenVinoModel(path, model.embed_dim, spec), counts


def _require_nncf() -> Any:
    try:
        with quiet():
            import nncf
    except ImportError as error:
        raise UserError(
            f"int8 for openvino requires nncf ({error}): pip install 'ssdistill[openvino]'"
        ) from error
    return nncf


def _scope(nncf: Any, graph: Any, names: Sequence[str], types: list[str]) -> Any:
    """OpenVINO splits a convolution with a bias in two, whose names begin with the node's."""
    excluded = set(names)
    operators = [op.get_friendly_name() for op in graph.get_ops()]
    chosen = [name for name in operators if name.split("/")[0] in excluded]
    return nncf.IgnoredScope(names=chosen, types=types, validate=False)


def _parameters(
    nncf: Any, calibration: str, percentile: float, reduce_range: bool, bias_correction: bool
) -> Any:
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        RangeEstimatorParametersSet,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    if calibration == "percentile":
        options = {"quantile_outlier_prob": 1 - percentile / 100,
                   "statistics_type": StatisticsType.QUANTILE}  # fmt: skip
        ranges = RangeEstimatorParameters(
            min=StatisticsCollectorParameters(aggregator_type=AggregatorType.MEAN, **options),
            max=StatisticsCollectorParameters(aggregator_type=AggregatorType.MEAN, **options),
        )
    else:
        sets = RangeEstimatorParametersSet
        ranges = sets.HISTOGRAM if calibration == "mse" else sets.MINMAX
    return nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=ranges,
        overflow_fix=OverflowFix.ENABLE if reduce_range else None,
        disable_bias_correction=not bias_correction,
    )


def count_int8(graph: Any) -> dict[str, int]:
    """How many activations a graph quantizes, and how many weights are 8-bit integers.

    Raises:
        UserError: none.
    """
    operators = list(graph.get_ops())
    constants = [op for op in operators if op.get_type_name() == "Constant"]
    integers = [c for c in constants if c.get_element_type().get_type_name() in ("i8", "u8")]
    counts = {
        "quantize_nodes": sum(op.get_type_name() == "FakeQuantize" for op in operators),
        "int8_weights": sum(len(c.shape) > 1 for c in integers),
    }
    if not all(counts.values()):
        raise UserError(
            f"quantize: no operator became int8 for openvino: {counts}; choose another runtime"
        )
    return counts
