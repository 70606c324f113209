"""int8 files for ONNX Runtime: calibrated (static), or with ranges of every call (dynamic)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor

from ssdistill.artifacts.runtimes.tracing import quiet
from ssdistill.compress.int8.ranges import mse_range
from ssdistill.errors import UserError

LARGEST_BATCH = 32
METHODS = {
    "minmax": "MinMax",
    "percentile": "Percentile",
    "entropy": "Entropy",
    "mse": "MinMax",
}
DYNAMIC_OPERATORS = ("MatMul", "Gemm")
INPUT = "inputs"
WARNINGS, ERRORS = 2, 3
"""Of ONNX Runtime's log; the first is its own default."""
Calibration = Literal["minmax", "percentile", "entropy", "mse"]


def write_static(
    source: Path,
    target: Path,
    inputs: Tensor,
    *,
    signed: bool,
    calibration: Calibration = "minmax",
    percentile: float = 99.999,
    reduce_range: bool = False,
    operators: Sequence[str] | None = None,
    float_nodes: Sequence[str] = (),
) -> None:
    """Write the int8 version of a float ONNX file (QDQ form, weights int8 per output channel).

    Args:
        source, target: the two files.
        inputs: what the ranges of the activations are taken from, in the file's own type.
        signed: activations as int8 rather than uint8.
        calibration: how a range is chosen: the extremes, a ``percentile`` of the values, least
            Kullback-Leibler divergence, or least squared error (:func:`mse_range`).
        percentile: in percent; used by that calibration only.
        reduce_range: 7-bit weights.
        operators: ONNX operators to quantize; None for all that ONNX Runtime knows.
        float_nodes: names of nodes to leave as they are.
    """
    from onnxruntime import quantization

    types = quantization.QuantType
    prepared = source.with_name("prepared.onnx")
    with quiet(), quiet_runtime():
        prepare(source, prepared)
        extra: dict[str, Any] = {"CalibPercentile": percentile}
        if calibration == "mse":
            ranges = _mse_ranges(prepared, inputs, operators)
            dtype = np.dtype(np.float32).type
            extra["TensorQuantOverrides"] = {
                name: [{"rmin": np.array(a, dtype), "rmax": np.array(b, dtype)}]
                for name, (a, b) in ranges.items()
            }
        quantization.quantize_static(
            str(prepared),
            str(target),
            _reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=types.QInt8 if signed else types.QUInt8,
            weight_type=types.QInt8,
            calibrate_method=quantization.CalibrationMethod[METHODS[calibration]],
            op_types_to_quantize=list(operators) if operators else None,
            nodes_to_exclude=list(float_nodes),
            extra_options=extra,
        )


def write_dynamic(
    source: Path,
    target: Path,
    *,
    reduce_range: bool = False,
    operators: Sequence[str] | None = None,
    float_nodes: Sequence[str] = (),
) -> None:
    """Write a file whose weights are int8 and whose activations are quantized at every call.

    It needs no calibration and follows the range of every batch. Convolutions are left float
    unless ``operators`` names them: ONNX Runtime has no fused dynamic convolution, and ResNet-18
    was four times slower than in float.
    """
    from onnxruntime import quantization

    prepared = source.with_name("prepared.onnx")
    with quiet(), quiet_runtime():
        prepare(source, prepared)
        quantization.quantize_dynamic(
            str(prepared),
            str(target),
            op_types_to_quantize=list(operators or DYNAMIC_OPERATORS),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(float_nodes),
        )


@contextmanager
def quiet_runtime() -> Iterator[None]:
    """Let ONNX Runtime's native code report errors only.

    It warns of every output whose written shape is more general than the one that it infers,
    which is so for all that the exporter of torch 2.11 writes.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(ERRORS)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)


def prepare(source: Path, target: Path) -> None:
    """Infer the shapes of all tensors: without them the quantizer skips some.

    Nodes keep their names: the exporter has folded batch norms already, and ONNX Runtime's own
    rewriting is done when the file is opened.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = source.resolve(), target.resolve()
    try:
        # Where it gives up, it leaves what it has in the working directory.
        with TemporaryDirectory() as folder, chdir(folder):
            quant_pre_process(str(source), str(target), skip_optimization=True)
    except Exception:
        # It raises a bare Exception where it meets a shape that it cannot follow; the exporter
        # has written most of them down already.
        quant_pre_process(
            str(source), str(target), skip_optimization=True, skip_symbolic_shape=True
        )


def even_batches(inputs: Tensor, largest: int = LARGEST_BATCH) -> Iterable[Tensor]:
    """Batches of one size: histogram methods cannot take a ragged last one."""
    size = max(d for d in range(1, largest + 1) if len(inputs) % d == 0)
    return inputs.cpu().split(size)


def _reader(inputs: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    batches = iter([{INPUT: part.numpy()} for part in even_batches(inputs)])

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    return Reader()


def _mse_ranges(
    path: Path, inputs: Tensor, operators: Sequence[str] | None
) -> dict[str, tuple[float, float]]:
    """Of every activation, from the histograms of ONNX Runtime's percentile method."""
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import create_calibrator

    calibrator = create_calibrator(
        str(path),
        list(operators) if operators else None,
        str(path.with_name("augmented.onnx")),
        quantization.CalibrationMethod.Percentile,
        extra_options={"symmetric": False},
    )
    calibrator.collect_data(_reader(inputs))
    # Of the calibrators that it may make, the one of this method collects histograms.
    histograms = cast("Any", calibrator).collector.get_histogram_dict()
    return {name: mse_range(h[0], h[1], h[2], h[3]) for name, h in histograms.items()}


def count_int8(path: Path, mode: str = "static") -> dict[str, int]:
    """How much of a file is int8: nodes that quantize, and weights of more than one axis.

    Raises:
        UserError: none.
    """
    import onnx

    graph = onnx.load(path).graph
    nodes = Counter(node.op_type for node in graph.node)
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    counts = {"int8_weights": sum(len(t.dims) > 1 for t in weights)}
    if mode == "dynamic":
        counts["quantize_nodes"] = nodes["DynamicQuantizeLinear"]
        counts["int8_products"] = nodes["MatMulInteger"] + nodes["ConvInteger"]
    else:
        counts["quantize_nodes"] = nodes["QuantizeLinear"]
        counts["dequantize_nodes"] = nodes["DequantizeLinear"]
    if not all(counts.values()):
        hint = "; mode=dynamic quantizes only MatMul and Gemm; use mode=static" * (
            mode == "dynamic"
        )
        raise UserError(f"quantize: no operator became int8 in {path}: {counts}{hint}")
    return counts
