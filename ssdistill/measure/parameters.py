"""How many numbers a model consists of, and how many bytes it ships as."""

from pathlib import Path
from typing import Any

from ssdistill.errors import UserError

WEIGHT_FILES = ("model.onnx", "model.safetensors")
"""The one file of an artifact that a user ships."""


def count_parameters(encoder: Any, nonzero: bool = False) -> int:
    """Number of parameters, whatever their width in bits.

    For an ONNX encoder these are its stored tensors of at least one axis, except the scales
    and zero points of quantization (whose size :func:`file_bytes` includes). Normalisation
    statistics are not parameters in PyTorch; an exporter folds them into the weights. A kept
    projector is not counted.

    Args:
        encoder: an :class:`~ssdistill.models.backbones.Encoder` or an ``OnnxEncoder``.
        nonzero: count only those different from zero.
    """
    if hasattr(encoder, "parameters"):
        # Not the projector that a teacher may have kept: nobody ships it.
        tensors = list(getattr(encoder, "net", encoder).parameters())
        return sum(int(p.count_nonzero()) if nonzero else p.numel() for p in tensors)
    return _count_onnx(Path(encoder.path), nonzero)


def _count_onnx(path: Path, nonzero: bool) -> int:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    # Inputs 1 and 2 of these nodes are scale and zero point; input 0 is the weight itself.
    pairs = ("QuantizeLinear", "DequantizeLinear")
    scales = {name for node in graph.node if node.op_type in pairs for name in node.input[1:]}
    # An int64 tensor is a shape or an axis for Reshape and the like, not a weight.
    stored = [
        t
        for t in graph.initializer
        if t.dims and t.name not in scales and t.data_type != onnx.TensorProto.INT64
    ]
    if not nonzero:
        return sum(int(np.prod(t.dims)) for t in stored)
    return sum(int(np.count_nonzero(numpy_helper.to_array(t))) for t in stored)


def file_bytes(folder: str | Path) -> int:
    """Bytes of the weights file in an artifact folder (``model.safetensors`` or ``model.onnx``).

    Raises:
        UserError: the folder holds neither.
    """
    for name in WEIGHT_FILES:
        path = Path(folder) / name
        if path.is_file():
            return path.stat().st_size
    raise UserError(f"no {' or '.join(WEIGHT_FILES)} in {folder}")
