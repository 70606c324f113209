"""Parameter count and file size of a model."""

import zlib
from pathlib import Path
from typing import Any

from ssdistill.artifacts.files import DESCRIPTION, weight_files
from ssdistill.errors import UserError

GZIP = 16 + zlib.MAX_WBITS
"""zlib's word for a gzip header and trailer around its stream."""
CHUNK = 1 << 20


def count_parameters(model: Any, nonzero: bool = False) -> int:
    """Number of parameters, whatever their width in bits.

    For an ONNX file these are its stored tensors of at least one axis, except the scales
    and zero points of quantization (whose size :func:`file_bytes` includes). Normalization
    statistics are not parameters in PyTorch; an exporter folds them into the weights. A kept
    projector is not counted.

    Args:
        model: a :class:`~ssdistill.models.model.Model` or another module, or an ``OnnxEncoder``.
        nonzero: count only those different from zero.

    Raises:
        UserError: for a file of another runtime, whose float parent has the same number.
    """
    if hasattr(model, "parameters"):
        # Without the projector of a teacher, which is not exported.
        tensors = list(getattr(model, "net", model).parameters())
        return sum(int(p.count_nonzero()) if nonzero else p.numel() for p in tensors)
    path = Path(model.path)
    if path.suffix != ".onnx":
        raise UserError(f"cannot count parameters of {path}: count those of its PyTorch parent")
    return _count_onnx(path, nonzero)


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
    """Bytes of the weights file or files in an artifact folder.

    Raises:
        UserError: the folder holds no model, or not all of its files.
    """
    return sum(path.stat().st_size for path in _files(Path(folder)))


def gzip_bytes(folder: str | Path) -> int:
    """Bytes of the same files after gzip, as in a download or an app package.

    Raises:
        UserError: the folder holds no model, or not all of its files.
    """
    return sum(_gzipped(path) for path in _files(Path(folder)))


def _gzipped(path: Path) -> int:
    packer, total = zlib.compressobj(wbits=GZIP), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def _files(folder: Path) -> list[Path]:
    # A step's own file is not described yet.
    described = (folder / DESCRIPTION).is_file()
    files = weight_files(folder) if described else sorted(folder.glob("model.*"))
    for path in files:
        if not path.is_file():
            raise UserError(f"no {path.name} in {folder}; copy the folder again")
    if not files:
        raise UserError(f"no model in {folder}; name the folder of a model")
    return files
