"""torch.export: the network as a graph that PyTorch runs without the code that built it."""

from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from ssdistill.artifacts.description import REMEDY
from ssdistill.artifacts.runtimes import Runtime, RuntimeModel
from ssdistill.artifacts.runtimes.exported_archive import checked_archive
from ssdistill.artifacts.runtimes.tracing import quiet, ready, torch_threads, trace
from ssdistill.errors import UserError, shortened
from ssdistill.models.model import Model

NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


class ExportedModel(RuntimeModel):
    """An exported program, run operator by operator by PyTorch.

    The file is a zip of JSON and raw tensors. PyTorch would unpickle some members, evaluate some
    strings and load native libraries of such a file as it opens it; a file that has any of them,
    which none written here has, is refused, see
    :mod:`ssdistill.artifacts.runtimes.exported_archive`. What is left to run are PyTorch's own
    operators.
    """

    runtime = "torch_export"

    def _open(self, threads: int) -> None:
        if hasattr(self, "module"):
            return
        try:
            archive = checked_archive(self.path)
            with quiet():
                program = torch.export.load(archive)
                self.module = program.module()
        except UserError:
            raise
        except Exception as error:  # a damaged file fails anywhere in the reader
            raise unreadable(self.path, "PyTorch", error) from error
        self.input_shape, self._dtype = input_of(program)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        with torch_threads(self.session_threads), torch.inference_mode():
            return self.module(torch.from_numpy(inputs)).float().numpy()

    @property
    def input_dtype(self) -> np.dtype:
        return self._dtype

    @classmethod
    def version(cls) -> str:
        return f"torch {torch.__version__} export eager"


def input_of(program: ExportedProgram) -> tuple[tuple[int | None, ...], np.dtype]:
    """Shape of one input, None where any number will do, and the kind of its numbers."""
    name = next(iter(program.graph_signature.user_inputs))
    node = next(node for node in program.graph.nodes if node.name == name)
    sizes = node.meta["val"].shape[1:]
    shape = tuple(size if isinstance(size, int) else None for size in sizes)
    return shape, torch.empty(0, dtype=node.meta["val"].dtype).numpy().dtype


def unreadable(path: Path, reader: str, error: BaseException) -> UserError:
    """One-line error for a file that its reader rejects."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{reader} cannot open {path}: {shortened(reason, 150)}; {REMEDY}")


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program without its export-time metadata.

    Those are stack traces, with paths of this machine; the example it was traced with, which
    may be somebody's data; checks of the input that are run as Python.
    """
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for note in NOTES:
                node.meta.pop(note, None)
    program.example_inputs = None
    program._guards_code = []
    with quiet(), open(path, "wb") as file:
        torch.export.save(program, file)


class TorchExport(Runtime):
    """torch.export (graph of ATen operators, dynamic batch), run by PyTorch."""

    kind, paper = "torch_export", "PyTorch torch.export"
    file, module = "model.exported.pt2", "torch"
    opens = ExportedModel

    def write(self, model: Model, path: Path) -> None:
        model = ready(model)
        save_program(trace(model, "torch.export"), path)
        self.verify(model, path)
