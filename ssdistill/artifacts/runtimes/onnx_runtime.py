"""ONNX: writing a PyTorch model as one file, and running such a file in ONNX Runtime."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ssdistill.artifacts.runtimes import MAX_DIFFERENCE, Runtime, RuntimeModel, check
from ssdistill.artifacts.runtimes.onnx_parts import check_onnx
from ssdistill.artifacts.runtimes.tracing import explain, quiet, ready, trace
from ssdistill.errors import UserError
from ssdistill.models.model import Model

OPSET = 20
INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OnnxEncoder(RuntimeModel):
    """An ONNX file in ONNX Runtime; input (B, …), output ``embedding`` (B, embed_dim).

    Tensors may lie in other files of its folder, nowhere else. Operators of libraries that are
    not part of ONNX Runtime are unknown to it, and nothing in a file makes it load one.
    """

    runtime = "onnxruntime"

    def _open(self, threads: int) -> None:
        import onnxruntime

        if not hasattr(self, "session"):
            check_onnx(self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"ONNX Runtime cannot open {self.path}: {reason}; export the model again"
            ) from error
        self._check_ends()
        sizes = self.session.get_inputs()[0].shape[1:]
        self.input_shape = tuple(size if isinstance(size, int) else None for size in sizes)

    def _check_ends(self) -> None:
        """Refuse a graph without an input of known numbers or without an output."""
        kinds = [one.type for one in self.session.get_inputs()]
        if not kinds or not self.session.get_outputs():
            raise UserError(f"{self.path} has no input or no output: not an encoder; export one")
        if kinds[0] not in INPUT_TYPES:
            raise UserError(f"{self.path} takes {kinds[0]}: an encoder takes float or uint8 images")

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        embedding = self.session.run(None, {self.session.get_inputs()[0].name: inputs})[0]
        return cast("np.ndarray", embedding)  # an encoder's output is a tensor

    @property
    def input_dtype(self) -> np.dtype:
        return np.dtype(INPUT_TYPES[self.session.get_inputs()[0].type])

    @classmethod
    def version(cls) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"


def export_onnx(
    model: Model, path: str | Path, opset: int = OPSET, tolerance: float = MAX_DIFFERENCE
) -> float:
    """Write ``model`` as one ONNX file with a dynamic batch axis, and check it.

    An encoder's normalization is part of the graph: input ``inputs`` is float (B, C, H, W) in
    [0, 1], output ``embedding`` (B, embed_dim). The file is opened again in ONNX Runtime and
    compared with PyTorch on a batch of another size than the one it was traced with.

    Returns:
        the largest absolute difference to PyTorch.

    Raises:
        UserError: the exporter or ONNX Runtime cannot handle the architecture, or they disagree.
    """
    model, path = ready(model), Path(path)
    _write_onnx(model, path, opset)
    written = OnnxEncoder(path, model.embed_dim, getattr(model, "spec", None))
    return check(model, written, tolerance)


def _write_onnx(model: Model, path: Path, opset: int) -> None:
    # torch's exporter imports it late, and without it says so in a message of its own.
    import onnxscript  # noqa: F401

    program = trace(model, "ONNX")
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=["inputs"],
            )
            assert written is not None  # torch gives none where it traces itself, to a file
            _save_bare(written.model_proto, path)
    except Exception as error:  # what the exporter's parts raise shares no base class
        raise explain(error, model, "ONNX") from error


def _save_bare(model: Any, path: Path) -> None:
    """Save without the exporter's metadata, which holds stack traces with local paths."""
    import onnx

    graph = model.graph
    _call_output(graph, "embedding")
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]
    onnx.save(model, str(path))


def _call_output(graph: Any, name: str) -> None:
    """Name the output; the exporter would do so even if another value has that name already."""
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    new = {graph.output[0].name: name}
    if graph.output[0].name != name:
        new[name] = f"{name}_inside"
    for value in values:
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(old, old) for old in names]


class OnnxRuntime(Runtime):
    """ONNX (dynamo export, dynamic batch), run by ONNX Runtime."""

    kind, paper = "onnxruntime", "ONNX Runtime"
    file, module = "model.onnx", "onnxruntime"
    opens = OnnxEncoder

    def write(self, model: Model, path: Path) -> None:
        export_onnx(model, path, tolerance=self.tolerance)
