"""ExecuTorch: one file for phones and microcontrollers, run by XNNPACK's kernels."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from ssdistill.artifacts.description import REMEDY
from ssdistill.artifacts.runtimes import Runtime, RuntimeModel
from ssdistill.artifacts.runtimes.torch_export import unreadable
from ssdistill.artifacts.runtimes.tracing import explain, one_is_no_constant, quiet, ready, trace
from ssdistill.errors import UserError
from ssdistill.models.model import Model
from ssdistill.settings import PositiveInt

DTYPES = {0: np.uint8, 3: np.int32, 4: np.int64, 6: np.float32}
"""By their number in a file (c10/core/ScalarType.h)."""
IDENTIFIERS = (b"ET12", b"ET13")
"""How such a file says that it is one (schema/program.fbs)."""
MOST = 64
_pools = {"opened": 0}


class PteModel(RuntimeModel):
    """An ExecuTorch file with memory for a fixed batch size; larger batches run in slices.

    XNNPACK has one pool of threads for the process: a model with another number of threads than
    the one that ran before it starts a new pool, and is read again, before it runs. Do not run
    two of them in two threads of Python.
    """

    runtime = "executorch"

    def _open(self, threads: int) -> None:
        # Before the import, which takes seconds.
        content = self._program()
        Executorch.require()
        if not hasattr(self, "method"):
            self._load(content, threads)

    def _program(self) -> bytes:
        content = self.path.read_bytes()
        if content[4:8] not in IDENTIFIERS:
            raise UserError(
                f"ExecuTorch cannot open {self.path}: not an ExecuTorch program; {REMEDY}"
            )
        return content

    def _load(self, content: bytes, threads: int) -> None:
        from executorch.runtime import Runtime as Reader

        try:
            with _silenced():
                _resize_pool(threads)
                # By its content: of a path the file must not change for as long as it is open.
                self.program = Reader.get().load_program(content)
                self.method: Any = self.program.load_method("forward")
                facts = self.method.metadata.input_tensor_meta(0)
                one = np.zeros((1, *facts.sizes()[1:]), DTYPES[facts.dtype()])
                self._pool, self._most = _pools["opened"], facts.sizes()[0]
        except Exception as error:  # its readers raise RuntimeError, KeyError and others
            raise unreadable(self.path, "ExecuTorch", error) from error
        self.input_shape, self._dtype = one.shape[1:], one.dtype

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        _resize_pool(self.session_threads)
        if self._pool != _pools["opened"]:
            self._load(self._program(), self.session_threads)
        parts = torch.from_numpy(inputs).split(self._most)
        return np.concatenate([self.method.execute((part,))[0].float().numpy() for part in parts])

    @property
    def input_dtype(self) -> np.dtype:
        return self._dtype

    @classmethod
    def version(cls) -> str:
        from executorch.version import __version__

        return f"executorch {__version__} xnnpack"


def _resize_pool(threads: int) -> None:
    """Give XNNPACK's pool so many threads; those of PyTorch for 0."""
    from executorch.extension.pybindings import portable_lib

    threads = threads or torch.get_num_threads()
    if portable_lib._threadpool_get_thread_count() != threads:
        with _silenced():
            portable_lib._unsafe_reset_threadpool(threads)
        # Whatever was read before holds on to the pool that is gone.
        _pools["opened"] += 1


def lower(program: ExportedProgram) -> bytes:
    """Lower an exported program to the content of a file, delegating to XNNPACK.

    Raises:
        Exception: an operator without an implementation, and whatever else ExecuTorch says.
    """
    with _silenced(), _compiler_beside_python(), one_is_no_constant(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(edge.to_executorch().buffer)


@contextlib.contextmanager
def _compiler_beside_python() -> Iterator[None]:
    """Name ExecuTorch's ``flatc``, which is on no path where an environment is not activated."""
    name, beside = "FLATC_EXECUTABLE", Path(sys.executable).with_name("flatc")
    if name in os.environ or not beside.is_file():
        yield
        return
    os.environ[name] = str(beside)
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silence the runtime's native code, which writes past Python's streams."""
    with quiet(), open(os.devnull, "w") as void:
        saved_streams = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved_streams:
                os.dup2(void.fileno(), stream)
            yield
        finally:
            for stream, copy in saved_streams:
                os.dup2(copy, stream)
                os.close(copy)


class Executorch(Runtime):
    """ExecuTorch with XNNPACK (float32, dynamic batch up to a bound).

    Args:
        most: inputs its memory is planned for; larger batches are run in slices.
    """

    kind, paper = "executorch", "ExecuTorch, XNNPACK"
    file, module, extra = "model.pte", "executorch.runtime", "executorch"
    opens = PteModel

    def __init__(self, *, most: PositiveInt = MOST):
        self.most = most

    def write(self, model: Model, path: Path) -> None:
        self.require()
        model = ready(model)
        write_pte(trace(model, "ExecuTorch", max(2, self.most)), model, path)
        self.verify(model, path)


def write_pte(program: ExportedProgram, model: Model, path: Path) -> None:
    """Lower the program of ``model`` and write it.

    Raises:
        UserError: ExecuTorch cannot do what the model does.
    """
    try:
        path.write_bytes(lower(program))
    except Exception as error:  # its passes raise anything
        raise explain(error, model, "ExecuTorch") from error
