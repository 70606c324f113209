"""ONNX: writing a PyTorch encoder as one file, and running such a file as an encoder."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder, EncoderSpec
from ssdistill.models.representation import Representation

OPSET = 20
MAX_DIFFERENCE = 1e-3
"""Largest accepted difference to PyTorch, relative to the largest embedding value."""


class OnnxEncoder:
    """An ONNX file with the call of an :class:`~ssdistill.models.backbones.Encoder`.

    Args:
        path: the ``.onnx`` file; input float (B, 3, H, W) in [0, 1], output (B, embed_dim).
        spec: how the PyTorch network it was exported from was built.
        embed_dim: width of the embedding.
        session_threads: threads ONNX Runtime may use; 0 leaves the choice to it.

    Raises:
        UserError: no such file, or ONNX Runtime cannot read it.
    """

    training = False
    taps: tuple[str, ...] = ()

    def __init__(
        self, path: str | Path, spec: EncoderSpec, embed_dim: int, session_threads: int = 0
    ):
        self.path, self.spec, self.embed_dim = Path(path), spec, embed_dim
        self.session_threads = session_threads

    @property
    def session_threads(self) -> int:
        """Threads of the session; setting it opens the file again."""
        return self._threads

    @session_threads.setter
    def session_threads(self, threads: int) -> None:
        import onnxruntime

        if not self.path.is_file():
            raise UserError(f"no file {self.path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            reason = str(error).splitlines()[0]
            raise UserError(f"ONNX Runtime cannot open {self.path}: {reason}") from error
        self._threads = threads

    def __call__(self, x_BCHW: Tensor) -> Representation:
        """Encode float images in [0, 1]; the embedding comes back on the images' device."""
        pixels = np.ascontiguousarray(x_BCHW.detach().float().cpu().numpy())
        embedding_BD = self.session.run(None, {self.session.get_inputs()[0].name: pixels})[0]
        return Representation(torch.from_numpy(embedding_BD).to(x_BCHW.device))

    def eval(self) -> "OnnxEncoder":
        """Itself: it knows no other mode."""
        return self

    def train(self, mode: bool = True) -> "OnnxEncoder":
        """Itself; an ONNX file cannot be trained.

        Raises:
            UserError: for ``mode=True``.
        """
        if mode:
            raise UserError(f"{self.path} is an ONNX file: it cannot be trained")
        return self

    def to(self, *_: Any, **__: Any) -> "OnnxEncoder":
        """Itself: ONNX Runtime keeps it on the CPU."""
        return self


class _Embedding(nn.Module):
    """Only the embedding, as a plain tensor."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).embedding_BD


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporter and quantizer, which narrate on stdout, in logs and in warnings."""
    names = ("", "torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, "w") as void:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def export_onnx(encoder: Encoder, path: str | Path, opset: int = OPSET) -> float:
    """Write ``encoder`` as one ONNX file with a dynamic batch axis, and check it.

    The normalisation is part of the graph: input ``images`` is float (B, 3, H, W) in [0, 1],
    output ``embedding`` (B, embed_dim). The file is opened again in ONNX Runtime and compared
    with PyTorch on a batch of another size than the one it was traced with.

    Returns:
        the largest absolute difference to PyTorch.

    Raises:
        UserError: the exporter or ONNX Runtime cannot handle the architecture, or they disagree.
    """
    path = Path(path)
    was_training, taps = encoder.training, encoder.taps
    encoder.eval()
    encoder.taps = ()
    try:
        _write_onnx(encoder, path, opset)
        return _difference(encoder, path)
    finally:
        encoder.train(was_training)
        encoder.taps = taps


def _write_onnx(encoder: Encoder, path: Path, opset: int) -> None:
    size = encoder.spec.image_size
    example_BCHW = torch.linspace(0, 1, 2 * 3 * size * size).view(2, 3, size, size)
    try:
        with quiet():
            # An example batch of 1 would be taken for a constant (torch.export specialises 0, 1).
            program = torch.onnx.export(
                _Embedding(encoder).eval(),
                (example_BCHW.to(encoder.mean.device),),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
            _save_bare(program.model_proto, path)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"'{encoder.spec.name}' cannot be exported to ONNX: {reason}") from error


def _save_bare(model: Any, path: Path) -> None:
    """Save without the exporter's notes: they are stack traces with paths of this machine."""
    import onnx

    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]
    onnx.save(model, str(path))


@torch.no_grad()
def _difference(encoder: Encoder, path: Path) -> float:
    size = encoder.spec.image_size
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.rand(3, 3, size, size, generator=generator).to(encoder.mean.device)
    expected_BD = encoder(x_BCHW).embedding_BD
    found_BD = OnnxEncoder(path, encoder.spec, encoder.embed_dim)(x_BCHW).embedding_BD
    difference = float((expected_BD - found_BD).abs().max())
    # "not <=" so that NaN fails as well.
    if not difference <= MAX_DIFFERENCE * max(1.0, float(expected_BD.abs().max())):
        raise UserError(
            f"ONNX Runtime disagrees with PyTorch on '{encoder.spec.name}' by {difference:.2g}"
        )
    return difference


@contextlib.contextmanager
def float_onnx(encoder: Encoder) -> Iterator[OnnxEncoder]:
    """The same encoder in ONNX Runtime, in a folder that lives as long as the ``with``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(encoder, path)
        yield OnnxEncoder(path, encoder.spec, encoder.embed_dim)
