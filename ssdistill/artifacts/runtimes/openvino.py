"""OpenVINO: writing a model as an intermediate representation, and running it on the CPU."""

import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssdistill.artifacts.runtimes import Runtime, RuntimeModel
from ssdistill.artifacts.runtimes.onnx_runtime import export_onnx
from ssdistill.artifacts.runtimes.signal_stack import keep_signal_stack
from ssdistill.errors import UserError, no_file
from ssdistill.models.model import Model

ARITHMETIC = ("ssdistill", "arithmetic")
"""Where the file says what it is to be computed in."""
ROUNDED_TOLERANCE = 0.1
"""Largest accepted difference to PyTorch where numbers have 8 to 11 bits of mantissa."""

Arithmetic = Literal["f32", "bf16"]


class OpenVinoModel(RuntimeModel):
    """``model.xml`` and the ``model.bin`` beside it, in OpenVINO on the CPU."""

    runtime = "openvino"

    def _open(self, threads: int) -> None:
        OpenVino.require()
        import openvino

        weights = self.path.with_suffix(".bin")
        if not weights.is_file():
            raise UserError(no_file(weights, f"copy it with {self.path.name}"))
        if not hasattr(self, "_graph"):
            check_ir(self.path, weights)
        try:
            core = openvino.Core()
            graph = self._graph = core.read_model(self.path, weights)
            # Without a hint OpenVINO computes in bf16 wherever the processor can.
            options: dict[str, Any] = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _arithmetic(graph),
            }
            if threads:
                options["INFERENCE_NUM_THREADS"] = threads
            with keep_signal_stack():
                self._compiled = core.compile_model(graph, "CPU", options)
            self.input_shape = _input_shape(self._compiled)
        except Exception as error:  # its readers raise RuntimeError and, of odd files, others
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(
                f"OpenVINO cannot open {self.path}: {reason}; export the model again"
            ) from error
        self._request = self._compiled.create_infer_request()

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        # share_outputs would hand out memory that the next call overwrites.
        return self._request.infer([inputs], share_inputs=True)[0].astype(np.float32)

    @property
    def input_dtype(self) -> np.dtype:
        return np.dtype(self._compiled.input(0).element_type.to_dtype())

    @classmethod
    def version(cls) -> str:
        import openvino

        return f"openvino {openvino.__version__.split('-')[0]}"


def check_ir(path: Path, weights: Path) -> None:
    """Check that a file is OpenVINO's own format, with all its constants in ``weights``.

    By its content OpenVINO would also take it for a model of another framework, which may have
    further files or entities of its own.

    Raises:
        UserError: something else than XML of a network, or a constant beyond the end.
    """
    content = path.read_bytes()
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not re.match(rb"(<\?xml[^>]{0,200}\?>\s*)?<net\s", text) or b"<!" in content:
        raise UserError(
            f"OpenVINO cannot open {path}: not an OpenVINO network in XML; export the model again"
        )
    size = weights.stat().st_size
    for attributes in re.findall(rb"<data\s([^>]*)>", content):
        facts = dict(re.findall(rb'(offset|size)="(\d{1,20})"', attributes))
        if facts.keys() == {b"offset", b"size"} and sum(map(int, facts.values())) > size:
            raise UserError(
                f"{weights} is too short for the constants of {path.name}: copy both again"
            )


def _input_shape(compiled: Any) -> tuple[int | None, ...]:
    sizes = list(compiled.input(0).get_partial_shape())[1:]
    return tuple(size.get_length() if size.is_static else None for size in sizes)


class OpenVino(Runtime):
    """OpenVINO's intermediate representation, by way of ONNX.

    Args:
        weights: how they are stored: ``fp16`` halves the file, and they are computed with as
            float32 all the same.
        arithmetic: what products are computed in; ``bf16`` where the processor has it, float32
            elsewhere.
    """

    kind, paper = "openvino", "OpenVINO"
    file, files = "model.xml", ("model.xml", "model.bin")
    module, extra = "openvino", "openvino"
    opens = OpenVinoModel

    def __init__(
        self, *, weights: Literal["fp32", "fp16"] = "fp32", arithmetic: Arithmetic = "f32"
    ):
        self.weights = weights
        self.arithmetic: Arithmetic = arithmetic
        if weights == "fp16" or arithmetic == "bf16":
            self.tolerance = ROUNDED_TOLERANCE

    def write(self, model: Model, path: Path) -> None:
        """Write ``model`` to ``path`` and the ``.bin`` beside it, and compare with PyTorch.

        Raises:
            UserError: OpenVINO is not installed, or it cannot do what the model does.
        """
        self.require()
        graph = read_graph(model)
        save_graph(graph, path, half=self.weights == "fp16", arithmetic=self.arithmetic)
        self.verify(model, path)


def read_graph(model: Model) -> Any:
    """The float model as an ``openvino.Model``; its operators are called as the ONNX nodes are.

    Raises:
        UserError: it cannot be exported, or OpenVINO lacks one of its operators.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        export_onnx(model, source)
        return convert(source, model.name, openvino)


def convert(source: Path, name: str, openvino: Any) -> Any:
    """An ONNX file as an ``openvino.Model``.

    Raises:
        UserError: OpenVINO lacks one of its operators.
    """
    try:
        return openvino.convert_model(source)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"cannot convert '{name}' to OpenVINO: {reason}; choose another runtime"
        ) from error


def save_graph(graph: Any, path: Path, half: bool = False, arithmetic: Arithmetic = "f32") -> None:
    """Write an ``openvino.Model`` as ``path`` and the ``.bin`` beside it.

    Args:
        graph: the model.
        path: ends in ``.xml``.
        half: store float weights as float16.
        arithmetic: what it is to be computed in when it is opened.
    """
    import openvino

    graph.set_rt_info(arithmetic, list(ARITHMETIC))
    openvino.save_model(graph, path, compress_to_fp16=half)


def _arithmetic(graph: Any) -> str:
    if not graph.has_rt_info(list(ARITHMETIC)):
        return "f32"
    return str(graph.get_rt_info(list(ARITHMETIC)).value)
