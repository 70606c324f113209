"""One file = one runtime: how a model is written for it, and how such a file is run.

A new file here is found by itself (see `registry`).

Descriptions of files that are not opened belong to the folder above.
"""

import importlib
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.artifacts.runtimes.tracing import ready
from ssdistill.errors import UserError, no_file
from ssdistill.models.downloads import reason
from ssdistill.models.inputs import as_images, check_images
from ssdistill.models.model import Model
from ssdistill.models.representation import Representation
from ssdistill.models.spec import EncoderSpec

MAX_DIFFERENCE = 1e-3
"""Largest accepted difference to PyTorch, relative to the largest embedding value."""


class RuntimeModel(ABC):
    """A file for a runtime, with the call of a :class:`~ssdistill.models.model.Model`.

    Inputs are those of the model it was written from (float images in [0, 1] for an encoder),
    whatever type the file itself takes. It runs on the CPU and cannot be trained.

    Args:
        path: the file.
        embed_dim: width of the embedding.
        spec: how the encoder it was written from was built; None for another module.
        session_threads: threads the runtime may use; 0 leaves the choice to it.
        trust: open it even if it is native code that was not compiled here.

    Raises:
        UserError: no such file, a runtime that is not installed, or one that cannot read it;
            native code that is not trusted.

    Attributes:
        takes_images: whether inputs are images, so that uint8 ones are scaled to [0, 1].
        checks_inputs: whether the values of every batch are looked at, see
            :func:`ssdistill.models.inputs.check_images`.
        input_shape: shape of one input, None where any number will do; None for the whole
            where the file does not tell.
    """

    runtime: ClassVar[str]
    """The ``kind`` of its :class:`Runtime`."""
    input_shape: tuple[int | None, ...] | None = None
    training = False
    checks_inputs = False
    taps: tuple[str, ...] = ()

    def __init__(
        self,
        path: str | Path,
        embed_dim: int,
        spec: EncoderSpec | None = None,
        session_threads: int = 0,
        trust: bool = False,
    ):
        self.path, self.embed_dim, self.spec = Path(path), embed_dim, spec
        self.trust, self.takes_images = trust, spec is not None
        if not self.path.is_file():
            raise UserError(no_file(self.path))
        self.session_threads = session_threads

    @property
    def name(self) -> str:
        """Name used in messages."""
        return self.spec.name if self.spec else self.path.stem

    @property
    def session_threads(self) -> int:
        """Threads of the session; setting it opens the file again."""
        return self._threads

    @session_threads.setter
    def session_threads(self, threads: int) -> None:
        self._open(threads)
        self._threads = threads

    @abstractmethod
    def _open(self, threads: int) -> None:
        """Open a session with this many threads."""

    @abstractmethod
    def _run(self, inputs: np.ndarray) -> np.ndarray:
        """The embeddings (B, D), float32, of inputs of :attr:`input_dtype`."""

    @property
    @abstractmethod
    def input_dtype(self) -> np.dtype:
        """What the file takes: float32, int64, or uint8 for images of 0 to 255."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Name and version of what runs it, and how, as tables show it."""

    def __call__(self, x: Tensor) -> Representation:
        """Embed a batch; the embedding comes back on the inputs' device.

        A file that takes images of 0 to 255 is given them rounded and, where it resizes them
        itself, in the size that it resizes.

        Raises:
            UserError: inputs of another shape or kind of number than the file takes.
        """
        x = self._as_images(x) if self.takes_images else x
        array = self._prepare(x.detach().cpu())
        if not len(array):
            return Representation(torch.zeros(0, self.embed_dim, device=x.device))
        try:
            embedding = self._run(array)
        except UserError:
            raise
        except Exception as error:  # every runtime has errors of its own
            raise UserError(
                f"{self.path}: {self.runtime} cannot run inputs of shape {array.shape} "
                f"({reason(error)}); check the inputs, or export the model again"
            ) from error
        if embedding.ndim != 2 or len(embedding) != len(array):
            raise UserError(
                f"{self.path} returns shape {embedding.shape} for {len(array)} inputs, expected "
                "embeddings (B, D); export it again"
            )
        return Representation(torch.from_numpy(embedding).to(x.device))

    def _as_images(self, x: Tensor) -> Tensor:
        if not (isinstance(x, Tensor) and x.dtype == torch.uint8 == self._torch_dtype):
            x = as_images(x, self.name, self._channels)
        if self.checks_inputs:
            check_images(x, self.name, x.is_floating_point(), self._channels)
        return x

    @property
    def _channels(self) -> int | None:
        """Of the images it takes; None where that is not known."""
        return self.spec.in_chans if self.spec else (self.input_shape or (None,))[0]

    @property
    def _torch_dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.input_dtype)).dtype

    def _prepare(self, inputs: Tensor) -> np.ndarray:
        takes, floating = self.input_dtype, inputs.is_floating_point()
        if takes == np.uint8 and floating:
            inputs = self._pixels(inputs.float())
        elif np.issubdtype(takes, np.integer) and floating:
            raise UserError(f"{self.path} takes {takes}, got {inputs.dtype}; convert the inputs")
        shape, expected = tuple(inputs.shape[1:]), self.input_shape
        if expected is not None and not _fits(shape, expected):
            raise UserError(
                f"{self.path} takes inputs of shape {expected}, got {shape}; resize the inputs"
            )
        inputs = inputs.float() if inputs.is_floating_point() else inputs
        return np.ascontiguousarray(inputs.numpy(), dtype=takes)

    def _pixels(self, x_BCHW: Tensor) -> Tensor:
        """Convert images in [0, 1] to uint8, in the size that the file takes."""
        expected = self.input_shape
        if expected is not None and x_BCHW.ndim == 4 and not _fits(x_BCHW.shape[1:], expected):
            # A side that may be any stays as it is.
            sides = zip(expected[1:], x_BCHW.shape[2:], strict=False)
            size = [given if side is None else side for side, given in sides]
            x_BCHW = F.interpolate(x_BCHW, size, mode="bicubic", antialias=True)
        return x_BCHW.mul(255).round().clamp(0, 255).to(torch.uint8)

    def eval(self) -> "RuntimeModel":
        """Return itself: a runtime model is always in eval mode."""
        return self

    def train(self, mode: bool = True) -> "RuntimeModel":
        """Return itself for ``train(False)``; a file cannot be trained.

        Raises:
            UserError: for ``mode=True``.
        """
        if mode:
            raise UserError(
                f"{self.path} is a file for {self.runtime} and cannot be trained: train the "
                "PyTorch model"
            )
        return self

    def to(self, *_: Any, **__: Any) -> "RuntimeModel":
        """Return itself: the runtime runs on the CPU."""
        return self


class Runtime(ABC):
    """A runtime that models can be written for.

    Keyword-only constructor arguments are settings of the file.

    A subclass sets:
        kind: name in a config.
        paper: where it is documented: name of the project.
        file: name of its file in an artifact folder, unlike any other runtime's.
        opens: the class that runs it.
        module, extra: what must be importable, and which extra of ssdistill installs it; None
            where ssdistill itself needs it.
        compiles: True when writing a file takes a C++ compiler, and tens of seconds.
        tolerance: largest accepted difference of a file to PyTorch, see :func:`check`.
    """

    kind: ClassVar[str]
    paper: ClassVar[str]
    file: ClassVar[str]
    opens: ClassVar[type[RuntimeModel]]
    module: ClassVar[str]
    extra: ClassVar[str | None] = None
    compiles: ClassVar[bool] = False
    tolerance: float = MAX_DIFFERENCE

    @classmethod
    def require(cls) -> None:
        """Make sure that the runtime is installed.

        Raises:
            UserError: it is not; the extra to install is named.
        """
        try:
            importlib.import_module(cls.module)
        except ImportError as error:
            remedy = f": pip install 'ssdistill[{cls.extra}]'" if cls.extra else ""
            raise UserError(f"{cls.kind} requires {cls.module} ({error}){remedy}") from error

    def verify(self, model: Model, path: Path) -> float:
        """Open the file that was written from ``model`` and compare them, see :func:`check`."""
        written = self.opens(path, model.embed_dim, getattr(model, "spec", None))
        return check(model, written, self.tolerance)

    @abstractmethod
    def write(self, model: Model, path: Path) -> None:
        """Write ``model`` (in eval mode, any batch size) to ``path``.

        Raises:
            UserError: the runtime is not installed, or cannot do what the model does; the
                module or operator is named where that is known.
        """


def check(model: Model, written: RuntimeModel, tolerance: float = MAX_DIFFERENCE) -> float:
    """Compare a file with the model it was written from; return the largest absolute difference.

    They are compared on a batch of another size than the one a file is traced with.

    Raises:
        UserError: they differ by more than ``tolerance`` times the largest embedding value.
    """
    model = ready(model)
    with torch.no_grad():
        x = model.example(3)
        expected_BD, found_BD = model(x).embedding_BD, written(x).embedding_BD
    difference = float((expected_BD - found_BD).abs().max())
    # "not <=" so that NaN fails as well.
    if not difference <= tolerance * max(1.0, float(expected_BD.abs().max())):
        raise UserError(
            f"{written.version()} differs from PyTorch on '{model.name}' by {difference:.2g}, "
            f"more than the relative tolerance {tolerance:g}; choose another runtime"
        )
    return difference


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        expected_size in (None, size) for size, expected_size in zip(shape, expected, strict=True)
    )


def on_arm() -> bool:
    """Whether this machine has an ARM processor, whose fast int8 products are signed."""
    return platform.machine().lower().startswith(("arm", "aarch"))
