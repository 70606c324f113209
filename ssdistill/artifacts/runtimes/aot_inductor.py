"""AOTInductor: the network compiled to a native library of this kind of processor."""

import json
import os
import platform
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from ssdistill.artifacts.description import REMEDY
from ssdistill.artifacts.runtimes import Runtime, RuntimeModel
from ssdistill.artifacts.runtimes.compiled_here import is_known, remember, state_folder
from ssdistill.artifacts.runtimes.exported_archive import check_sizes
from ssdistill.artifacts.runtimes.torch_export import input_of, unreadable
from ssdistill.artifacts.runtimes.tracing import explain, quiet, ready, torch_threads, trace
from ssdistill.errors import UserError
from ssdistill.models.model import Model

SOURCES = (".cpp", ".h", ".o", ".cubin")
LEVELS = ("DEFAULT", "AVX2", "AVX512")
"""What PyTorch calls vector instructions of x86, each of which includes those before it."""


class CompiledModel(RuntimeModel):
    """A package compiled by AOTInductor.

    It is native code: opening one runs whatever is in it, with all rights of the process. What
    was compiled here, see :mod:`ssdistill.artifacts.runtimes.compiled_here`, is opened as it is;
    anything else only with ``trust=True``. It needs an operating system and a processor like those
    it was compiled on, and about the same PyTorch.
    """

    runtime = "aot_inductor"

    def _open(self, threads: int) -> None:
        if hasattr(self, "package"):
            return
        _check_machine(self.path, _machine(self.path))
        if not (self.trust or is_known(self.path)):
            raise UserError(
                f"{self.path} is native code that runs with your full permissions when opened, "
                "and it was not compiled on this machine: if you trust its source, open it with "
                "trust=True (--trust)"
            )
        try:
            with quiet():
                self.package = torch._inductor.aoti_load_package(str(self.path))
                facts = self.package.get_metadata()
                shape, dtype = json.loads(facts["shape"]), np.dtype(facts["dtype"])
        except Exception as error:  # a foreign package fails anywhere in the reader
            raise unreadable(self.path, "AOTInductor", error) from error
        self.input_shape, self._dtype = tuple(shape), dtype

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        with torch_threads(self.session_threads), torch.inference_mode():
            return self.package(torch.from_numpy(inputs)).float().numpy()

    @property
    def input_dtype(self) -> np.dtype:
        return self._dtype

    @classmethod
    def version(cls) -> str:
        capability = torch.backends.cpu.get_cpu_capability().lower()
        return f"torch {torch.__version__} AOTInductor {capability}"


def _machine(path: Path) -> dict[str, Any]:
    """Read which processor a package was compiled for."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_sizes(path, archive.infolist(), path.stat().st_size)
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"'{damaged}' is corrupt")
            names = [n for n in archive.namelist() if n.endswith("_metadata.json")]
            facts = json.loads(archive.read(names[0])) if names else {}
            return facts if isinstance(facts, dict) else {}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError,
            RecursionError, RuntimeError) as error:  # fmt: skip
        raise unreadable(path, "AOTInductor", error) from error


def _check_machine(path: Path, needs: dict[str, Any]) -> None:
    """Reject a package for another processor: running it would crash the process."""
    machine, instructions = needs.get("AOTI_MACHINE"), str(needs.get("AOTI_CPU_ISA", "")).split()
    if machine is None:
        raise UserError(
            f"AOTInductor cannot open {path}: not an AOTInductor package for a CPU; {REMEDY}"
        )
    instruction_set = torch.backends.cpu.get_cpu_capability()
    has = (
        LEVELS[: LEVELS.index(instruction_set) + 1]
        if instruction_set in LEVELS
        else (instruction_set,)
    )
    lacking = [name for name in instructions if name in LEVELS and name not in has]
    if machine != platform.machine() or lacking:
        compiled_for = " ".join([machine, *instructions])
        raise UserError(
            f"{path} was compiled for {compiled_for}, but this machine is {platform.machine()} "
            f"{instruction_set}; export it on this machine"
        )


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compile a program for this processor.

    Weights are folded into the code where that helps (``freezing``). The number of threads is
    that of PyTorch when it runs, not when it is compiled. Neither sources nor debugging notes
    are kept.

    Raises:
        Exception: whatever the compiler says.
    """
    from torch._inductor import config

    shape, dtype = input_of(program)
    facts = {"shape": json.dumps(shape), "dtype": str(dtype)}
    inductor_options = {
        "freezing": True,
        "cpp.dynamic_threads": True,
        "cpp.threads": os.cpu_count() or 1,
        "aot_inductor.metadata": facts,
        "aot_inductor.enable_line_tables": False,
        "compile_threads": 1,
    }
    available = config.get_config_copy()
    options = {name: value for name, value in inductor_options.items() if name in available}
    with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(package), inductor_configs=options
        )
        _without_sources(package, path)
    remember(path)


def _without_sources(package: Path, path: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    with zipfile.ZipFile(package) as whole, zipfile.ZipFile(path, "w") as stripped:
        for name in whole.namelist():
            # A source stays as an empty file: torch 2.11 finds the others by its name. And without
            # the time of day, which would make every file another one.
            content = b"" if name.endswith(SOURCES) else whole.read(name)
            stripped.writestr(zipfile.ZipInfo(name), content)
            if name.endswith(".so"):
                # Every compilation leaves two more copies of the weights in inductor's cache.
                for left in Path(cache_dir()).glob(f"*/{Path(name).name.partition('.')[0]}*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


class AotInductor(Runtime):
    """AOTInductor (compiled for this kind of CPU by its C++ compiler, dynamic batch)."""

    kind, paper = "aot_inductor", "PyTorch AOTInductor"
    file, module = "model.aoti.pt2", "torch"
    opens, compiles = CompiledModel, True

    @classmethod
    def require(cls) -> None:
        """Make sure that there is a C++ compiler; opening a file needs none.

        Raises:
            UserError: there is none; or :func:`state_folder` cannot take a note of what it makes.
        """
        super().require()
        state_folder()
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except (exc.InvalidCxxCompiler, RuntimeError) as error:
            raise UserError(
                f"{cls.kind} requires a C++ compiler: install one, such as g++"
            ) from error

    def write(self, model: Model, path: Path) -> None:
        self.require()
        model = ready(model)
        program = trace(model, "AOTInductor")
        try:
            compile_program(program, path)
        except Exception as error:  # inductor, or the compiler it calls
            raise explain(error, model, "AOTInductor") from error
        self.verify(model, path)
