"""Runs tests on mutants: a process that holds the heavy libraries forks a child for each of them.

A child imports the package afresh, from a copy of the tree in which one file is changed; the copy
is put right again whatever happens. The tree that was copied is only ever read.
"""

import compileall
import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from operators import Mutant

COPIED = ("ssdistill", "tests", "configs", "experiments", "setup.cfg", "pyproject.toml")
COPIED_FILES = ("README.md", "CHANGELOG.md", "Makefile", ".gitignore", "LICENSE", "CITATION.cff")
HEAVY = (
    "torch torchvision timm lightning_fabric hypothesis.strategies numpy.testing scipy.stats"
    " sklearn.linear_model sklearn.datasets onnx onnxruntime pydantic omegaconf rich.console"
    " torch_pruning PIL.Image wandb torch.onnx torch.utils.flop_counter safetensors.torch"
    " torch._dynamo torch.export"
).split()
"""What nearly every test imports, and what no mutant changes."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said of one mutant.

    Attributes:
        status: ``noticed``, ``survived``, ``timeout`` or ``uncovered`` (no test executes it).
        test: the test that failed first.
        error: the type of its exception.
        seconds: wall time.
        tests: how many tests were chosen.
    """

    status: str
    test: str = ""
    error: str = ""
    seconds: float = 0.0
    tests: int = 0


def import_heavy_libraries() -> None:
    """Import what children share; what is not installed is left out."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def copy_tree(tree: Path, copy: Path) -> None:
    """A copy of ``tree`` whose bytecode is checked by content, so that no change is missed."""
    if copy.exists():
        shutil.rmtree(copy)
    copy.mkdir(parents=True)
    unwanted = shutil.ignore_patterns("__pycache__", "runs", ".hypothesis")
    for name in COPIED:
        source = tree / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=unwanted, symlinks=True)
        elif source.exists():
            shutil.copy2(source, copy / name)
    for name in COPIED_FILES:
        if (tree / name).exists():
            shutil.copy2(tree / name, copy / name)
    checked = PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(copy / "ssdistill", quiet=1, invalidation_mode=checked)


@contextlib.contextmanager
def applied(mutant: Mutant | None, copy: Path) -> Iterator[None]:
    """The copy with the mutant in it, and without it afterwards."""
    if mutant is None:
        yield
        return
    path = copy / mutant.file
    text = path.read_text()
    path.write_text(mutant.applied(text))
    try:
        yield
    finally:
        path.write_text(text)


@contextlib.contextmanager
def one_of(locks: Sequence[Path]) -> Iterator[None]:
    """Hold the lock of one of the files, so that a machine can be shared; no files, no wait."""
    while locks:
        for path in locks:
            with path.open("a") as file:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield
                    return
        time.sleep(0.3)
    yield


def run_tests(
    mutant: Mutant | None, tests: Sequence[str], copy: Path, limit: float, locks: Sequence[Path]
) -> Outcome:
    """What ``tests`` say of the mutant (None: of the tree as it is) within ``limit`` seconds."""
    if not tests:
        return Outcome("uncovered")
    with one_of(locks), applied(mutant, copy):
        began = time.perf_counter()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _in_child(copy, tests, writer)
        os.close(writer)
        finished = _wait(child, began + limit)
        with os.fdopen(reader) as pipe:
            said = pipe.read() if finished else ""
        seconds = round(time.perf_counter() - began, 2)
    if not finished:
        return Outcome("timeout", seconds=seconds, tests=len(tests))
    found = json.loads(said) if said else {"code": 70, "test": "", "error": "process died"}
    status = "survived" if found["code"] == 0 else "noticed"
    return Outcome(status, found["test"], found["error"], seconds, len(tests))


def _wait(child: int, until: float) -> bool:
    """Whether the child ended by itself; one that did not is killed with what it started."""
    while time.perf_counter() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class _FirstFailure:
    """A pytest plugin that remembers the first test that failed, and with what."""

    def __init__(self) -> None:
        self.test = self.error = ""

    def pytest_exception_interact(self, node, call) -> None:
        if not self.test:
            self.test, self.error = node.nodeid, call.excinfo.typename


def _in_child(copy: Path, tests: Sequence[str], writer: int) -> None:
    """Run the tests and leave the process; nothing of the parent's clean-up runs."""
    code, failure = 70, _FirstFailure()
    try:
        os.setpgid(0, 0)
        os.chdir(copy)
        sink = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(sink, stream)
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(copy)]
        os.environ["PYTHONPATH"] = str(copy)
        import pytest

        scratch = copy.parent / f"{copy.name}-tmp"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=no"]
        options += ["--basetemp", str(scratch)]
        code = int(pytest.main([*options, *tests], plugins=[failure]))
    except BaseException as error:
        failure.error = failure.error or type(error).__name__
    said = {"code": code, "test": failure.test, "error": failure.error}
    os.write(writer, json.dumps(said).encode())
    os._exit(0)
