"""Machine-independent costs of a saved model."""

from pathlib import Path
from typing import Any

from torch import nn

from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters, file_bytes, gzip_bytes


def costs_of(model: Any, folder: str | Path, parent: nn.Module | None = None) -> dict[str, float]:
    """Compute the costs of a saved model, as metrics.

    Args:
        model: a PyTorch model, or a file for a runtime.
        folder: the artifact folder it is saved in.
        parent: for a file, the PyTorch model it was written from, on which MACs are counted,
            and parameters where the file does not tell them.

    Returns:
        ``compress/params``, ``compress/params_nonzero``, ``compress/macs`` (of one input),
        ``compress/bytes`` (of the files a user ships) and ``compress/bytes_gzip``; without
        what cannot be counted where a file has no ``parent``.

    Raises:
        UserError: the folder holds no weights.
    """
    metrics: dict[str, float] = {
        "compress/bytes": file_bytes(folder),
        "compress/bytes_gzip": gzip_bytes(folder),
    }
    countable = isinstance(model, nn.Module) or Path(model.path).suffix == ".onnx"
    counted_model = model if countable else parent
    if counted_model is not None:
        metrics["compress/params"] = count_parameters(counted_model)
        metrics["compress/params_nonzero"] = count_parameters(counted_model, nonzero=True)
    computed = model if isinstance(model, nn.Module) else parent
    if computed is not None:
        metrics["compress/macs"] = count_macs(computed)
    return metrics
