"""A least-recently-used cache of temporary ONNX exports."""

import hashlib
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder, export_onnx
from ssdistill.models.backbones import Encoder
from ssdistill.models.model import Model

MOST = 16
"""Capacity of the cache; a short chain measures each of its models several times."""


class _ExportCache:
    """Temporary ONNX files of this process; the least recently used is evicted first."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ssdistill-"))
        # A TemporaryDirectory that lives until the end warns then that nobody has cleaned it up.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.paths: OrderedDict[str, Path] = OrderedDict()

    def path(self, encoder: Encoder) -> Path:
        key = _identity(encoder)
        if key not in self.paths:
            path = self.folder / f"{key[:24]}.onnx"
            export_onnx(encoder, path)
            self.paths[key] = path
        self.paths.move_to_end(key)
        while len(self.paths) > MOST:
            self.paths.popitem(last=False)[1].unlink(missing_ok=True)
        return self.paths[key]


_caches: list[_ExportCache] = []


@contextmanager
def float_onnx(model: Model) -> Iterator[OnnxEncoder]:
    """Run a model in ONNX Runtime inside the ``with`` block.

    An earlier export of an encoder with the same weights is cached; the export takes
    seconds, and each model of a chain is measured beside its parent, its children and all.

    Raises:
        UserError: see :func:`ssdistill.artifacts.runtimes.onnx_runtime.export_onnx`.
    """
    if isinstance(model, Encoder):
        if not _caches:
            _caches.append(_ExportCache())
        yield OnnxEncoder(_caches[0].path(model), model.embed_dim, model.spec)
        return
    # Of another module it is not known what its ``embed`` does with the weights.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path)
        yield OnnxEncoder(path, model.embed_dim)


def _identity(encoder: Encoder) -> str:
    """sha256 of everything that determines the exported file."""
    digest = hashlib.sha256(f"{encoder.spec.model_dump_json()} {encoder.removed}".encode())
    for name, tensor in encoder.net.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
