"""Run tests on mutants: a process with the heavy libraries loaded forks a child for each.

A child imports the package afresh, from a copy of the tree in which one file is changed; the copy
is put right again whatever happens. The tree that was copied is only ever read.
"""

import compileall
import contextlib
import fcntl
import gc
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from operators import Mutant

COPIED = ("ssdistill", "tests", "configs", "experiments", "docs", ".ci")
COPIED_FILES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "CITATION.cff"),
    *("setup.cfg", "pyproject.toml", "Makefile", ".gitignore"),
)
HEAVY = (
    *("torch", "torchvision", "timm", "lightning_fabric", "hypothesis.strategies", "scipy.stats"),
    *("sklearn.linear_model", "sklearn.datasets", "onnx", "onnxruntime", "pydantic", "omegaconf"),
    *("rich.console", "torch_pruning", "PIL.Image", "torch.onnx", "torch.utils.flop_counter"),
    *("safetensors.torch", "torch._dynamo", "torch.export", "torchmetrics", "onnxscript"),
    *("lightly.loss", "lightly.models.modules", "einops", "pytest"),
)
"""What nearly every test imports, and what no mutant changes."""


WALL = 10
"""Seconds of wall time for a second of processor time, on a machine that does other things."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said of one mutant.

    Attributes:
        status: ``noticed``; ``timeout``: noticed, as the tests no longer end; ``survived``;
            ``uncovered``: no test executes it; ``unfinished``: nothing is known, as the machine was
            too busy or the tests do not pass without the mutant either.
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

    @property
    def is_doubtful(self) -> bool:
        """Whether the same might have come of the tests without the mutant: they took too long,
        or there was no single one that failed, as where a file of them cannot be read."""
        return self.status == "timeout" or (self.status == "noticed" and "::" not in self.test)


def import_heavy_libraries() -> None:
    """Import what children share; what is not installed is skipped."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # no child searches these objects for garbage


def copy_tree(tree: Path, copy: Path) -> None:
    """A copy of ``tree`` whose bytecode is checked by content, so that no change is missed.

    What a child compiles of a mutant is checked so, too, and pytest keeps the tests it rewrote.
    """
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
    for folder in ("ssdistill", "tests"):
        compileall.compile_dir(copy / folder, quiet=1, invalidation_mode=checked)


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
    with contextlib.ExitStack() as stack:
        while locks and not any(_held(path, stack) for path in locks):
            time.sleep(1)
        yield


def _held(path: Path, stack: contextlib.ExitStack) -> bool:
    """Whether the lock could be had; ``stack`` gives it back."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    stack.callback(file.close)
    return True


def run_tests(
    mutant: Mutant | None, tests: Sequence[str], copy: Path, limit: float, locks: Sequence[Path]
) -> Outcome:
    """What ``tests`` say of the mutant (None: of the tree as it is).

    Args:
        limit: seconds of processor time; of wall time a busy machine may take ten times as many.
    """
    if not tests:
        return Outcome("uncovered")
    with one_of(locks), applied(mutant, copy):
        began = time.perf_counter()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _in_child(copy, tests, writer, limit)
        os.close(writer)
        ended = _wait(child, began + WALL * limit)
        with os.fdopen(reader) as pipe:
            said = pipe.read() if ended is not None else ""
        seconds = round(time.perf_counter() - began, 2)
    if ended is None:
        return Outcome("unfinished", seconds=seconds, tests=len(tests))
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome("timeout", seconds=seconds, tests=len(tests))
    found = json.loads(said) if said else {"code": 70, "test": "", "error": "process died"}
    status = "survived" if found["code"] == 0 else "noticed"
    return Outcome(status, found["test"], found["error"], seconds, len(tests))


def _wait(child: int, until: float) -> int | None:
    """How the child ended; None for one that had to be killed, with all that it started."""
    while time.perf_counter() < until:
        process, ended = os.waitpid(child, os.WNOHANG)
        if process:
            return ended
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class _FirstFailure:
    """A pytest plugin that remembers the first test that failed, and with what."""

    def __init__(self) -> None:
        self.test = self.error = ""

    def pytest_exception_interact(self, node, call) -> None:
        if not self.test:
            self.test, self.error = node.nodeid, call.excinfo.typename


def _in_child(copy: Path, tests: Sequence[str], writer: int, limit: float) -> None:
    """Run the tests and leave the process; nothing of the parent's clean-up runs."""
    code, failure = 70, _FirstFailure()
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        os.chdir(copy)
        sink = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(sink, stream)
        sys.path[:0] = [str(copy)]
        os.environ["PYTHONPATH"] = str(copy)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        import pytest

        scratch = copy.parent / f"{copy.name}-tmp"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
        options += ["--tb=no", "--basetemp", str(scratch)]
        code = int(pytest.main([*options, *tests], plugins=[failure]))
    except BaseException as error:
        failure.error = failure.error or type(error).__name__
    said = {"code": code, "test": failure.test, "error": failure.error}
    os.write(writer, json.dumps(said).encode())
    os._exit(0)
