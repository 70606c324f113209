"""Checks of runtimes: a file agrees with its model, and what is no such file is refused."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.artifacts.runtimes import Runtime, RuntimeModel, check
from ssdistill.compress.export import Uint8Encoder
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.models.factorized import Factorized
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import RUNTIMES
from ssdistill.testing.candidate import (
    DESCRIBED,
    Candidate,
    Check,
    demand,
    names_its_origin,
    one_line_error,
    refused,
    skip,
)
from ssdistill.testing.tiny_networks import normalized_cnn

TAP, SIDE, TOLERANCE = "layer1", 16, 1e-4
BATCHES = (1, 3, 64, 67)
ABSENT = "no_such_library"


def write(candidate: Candidate, model: Any, folder: Path) -> RuntimeModel:
    """Write a model and open the file; skipped where the runtime is not installed."""
    cls = candidate.cls
    try:
        cls.require()
    except UserError as error:
        skip(str(error))
    candidate.build().write(model, folder / cls.file)
    return cls.opens(folder / cls.file, model.embed_dim, getattr(model, "spec", None))


class Written:
    """A file of the tiny encoder, which was in training mode, with a tap, when it was written.

    Attributes:
        found: the open file; encoder: what it was written from.
        left: mode of the encoder, mode of its first batch norm, and taps, after writing.
    """

    def __init__(self, candidate: Candidate):
        self._folder = tempfile.TemporaryDirectory(prefix="ssdistill-")
        self.encoder: Encoder = normalized_cnn()
        self.encoder.train()
        first: Any = self.encoder.net.bn1
        first.eval()
        self.encoder.set_taps((TAP,))
        self.found = write(candidate, self.encoder, Path(self._folder.name))
        self.left = self.encoder.training, first.training, self.encoder.taps


def written(candidate: Candidate) -> Written:
    """The file, written once."""
    return candidate.once("written", lambda: Written(candidate))


def says_what_it_is(candidate: Candidate) -> None:
    """Its project, and a name of its file that no other runtime has."""
    cls = candidate.cls
    demand(issubclass(cls, Runtime), "it is no subclass of Runtime")
    names_its_origin(candidate)
    demand(issubclass(cls.opens, RuntimeModel), "opens must be a subclass of RuntimeModel")
    demand(cls.opens.runtime == cls.kind, f"opens.runtime must be '{cls.kind}'")
    others = {other.file for kind, other in RUNTIMES.classes.items() if kind != cls.kind}
    demand(cls.file not in others, f"another runtime has files called {cls.file}")


def encoder_is_left_as_it_was(candidate: Candidate) -> None:
    """Modes, taps and gradients of the model that is written stay."""
    one = written(candidate)
    demand(one.left == (True, False, (TAP,)), "write() changes modes or taps of the model")
    untouched = all(p.requires_grad and p.grad is None for p in one.encoder.net.parameters())
    demand(untouched, "write() changes gradients of the model")


@torch.no_grad()
def agrees_at_any_batch_size(candidate: Candidate) -> None:
    """The file embeds as the model does, whatever the batch size and the memory format."""
    one = written(candidate)
    found, expected = one.found, copy.deepcopy(one.encoder).eval()
    x_BCHW = torch.rand(0, 3, SIDE, SIDE)
    demand(found(x_BCHW).embedding_BD.shape == (0, 16), "no images have no embedding")
    for batch in BATCHES:
        x_BCHW = torch.rand(batch, 3, SIDE, SIDE)
        embedding_BD = found(x_BCHW).embedding_BD
        near = torch.allclose(embedding_BD, expected(x_BCHW).embedding_BD, atol=TOLERANCE)
        demand(near, f"it differs from PyTorch on {batch} images")
        other_BD = found(torch.rand(batch, 3, SIDE, SIDE)).embedding_BD
        demand(not torch.equal(other_BD, embedding_BD), "other images have the same embedding")
    channels_last = x_BCHW.contiguous(memory_format=torch.channels_last)
    same = torch.equal(found(channels_last).embedding_BD, found(x_BCHW).embedding_BD)
    demand(same, "images in channels-last format have another embedding")


def is_a_runtime_model(candidate: Candidate) -> None:
    """The open file tells what it is, and behaves as a model in eval mode."""
    found = written(candidate).found
    demand(type(found) is candidate.cls.opens, "the file is opened by another class than opens")
    demand(found.version(), "version() is empty")
    demand(found.input_dtype == "float32", f"it takes {found.input_dtype}, not float32")
    demand(found.name == "resnet10t", f"its name is {found.name}, not the network's")
    itself = found.eval() is found and found.to("cpu") is found and found.train(False) is found
    demand(itself, "eval(), to() and train(False) must return the model itself")
    text = refused(found.train, "training a file")
    demand("cannot be trained" in text, f"training a file is refused with: {text}")


def takes_a_number_of_threads(
    candidate: Candidate, running: Callable[[RuntimeModel, Tensor], int] | None = None
) -> None:
    """Any number of threads gives the same embedding, and torch keeps its own number.

    Args:
        running: how many threads the runtime itself says it has, where it can be found out.
    """
    found = written(candidate).found
    x_BCHW, before = torch.rand(4, 3, SIDE, SIDE), torch.get_num_threads()
    expected_BD = found(x_BCHW).embedding_BD
    for threads in (2, 1, 0):
        found.session_threads = threads
        if running is not None:
            # 0 leaves the choice to the runtime; OpenVINO and XNNPACK then say what it is.
            count = running(found, x_BCHW)
            demand(count == threads if threads else count >= 0, f"{count} threads, not {threads}")
        near = torch.allclose(found(x_BCHW).embedding_BD, expected_BD, atol=1e-5)
        demand(near, f"another embedding with {threads} threads")
        demand(found.session_threads == threads, "session_threads is not what was set")
        demand(torch.get_num_threads() == before, "torch has another number of threads afterwards")


def other_files_are_refused(candidate: Candidate) -> None:
    """Empty, foreign and cut files are refused in one line that names the file."""
    one = written(candidate)
    content = one.found.path.read_bytes()
    opens, dim, spec = type(one.found), one.encoder.embed_dim, one.encoder.spec
    damaged = {"an empty file": b"", "nonsense": b"nonsense" * 99}
    damaged["half of a file"] = content[: len(content) // 2]
    with tempfile.TemporaryDirectory() as folder:
        for number, (what, data) in enumerate(damaged.items()):
            path = Path(folder) / f"{number}_{one.found.path.name}"
            path.write_bytes(data)
            text = refused(lambda path=path: opens(path, dim, spec), what)
            demand(path.name in text, f"{what} is refused without its name: {text}")
        for place in (Path(folder) / "absent", Path(folder)):
            text = refused(lambda place=place: opens(place, dim), "a missing file")
            demand("no such file or folder" in text, f"a missing file is refused with: {text}")


def another_model_is_noticed(candidate: Candidate) -> None:
    """A file that was written from another model is noticed."""
    one = written(candidate)
    other = copy.deepcopy(one.encoder)
    first: Any = other.net.conv1
    nn.init.constant_(first.weight, 0.1)
    text = refused(lambda: check(other, one.found), "the file of another model")
    demand("differs from PyTorch on 'resnet10t'" in text, f"another model is refused with: {text}")


def compressed_encoder() -> Uint8Encoder:
    """An encoder of uint8 images of another size, with pruned and factorized layers."""
    encoder = normalized_cnn()
    net: Any = encoder.net
    first, second = net.layer1[0], net.layer2[0]
    first.conv1 = nn.Conv2d(first.conv1.in_channels, 5, 3, padding=1, bias=False)
    first.bn1 = nn.BatchNorm2d(5)
    first.conv2 = nn.Conv2d(5, 8, 3, padding=1, bias=False)
    second.conv1 = Factorized.like(second.conv1, 3, "spatial")
    second.conv2 = Factorized.like(second.conv2, (3, 4), "tucker")
    for parameter in (*second.conv1.parameters(), *second.conv2.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return Uint8Encoder(encoder.eval(), 24)


@torch.no_grad()
def takes_uint8_of_compressed_encoders(candidate: Candidate, may_refuse: bool = True) -> None:
    """Encoders of uint8 images, pruned and factorized, are written, or refused in one line."""
    source = compressed_encoder()
    with tempfile.TemporaryDirectory() as folder:
        found = _write_or_skip(candidate, source, folder, may_refuse)
        images_BCHW = source.example(5)
        expected_BD = source(images_BCHW).embedding_BD
        demand(found.input_dtype == "uint8", f"it takes {found.input_dtype}, not uint8")
        for given in (images_BCHW, images_BCHW.float() / 255):
            near = torch.allclose(found(given).embedding_BD, expected_BD, atol=TOLERANCE)
            demand(near, f"it differs from PyTorch on images of {given.dtype}")


def _write_or_skip(candidate: Candidate, model: Any, folder: str, may_refuse: bool) -> RuntimeModel:
    try:
        return write(candidate, model, Path(folder))
    except UserError as error:
        one_line_error(error, "a model that it cannot write")
        if may_refuse:
            skip(str(error))
        raise


class Tokens(nn.Module):
    """A network over token ids, one of whose values is called what files call the output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.layer = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU())

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.layer(self.table(ids_BT)).mean(1)


@torch.no_grad()
def takes_token_ids(candidate: Candidate, may_refuse: bool = True) -> None:
    """Models of token ids are written, or refused in one line."""
    torch.manual_seed(0)
    model = Wrapped(Tokens().eval(), torch.randint(0, 50, (4, 7)))
    with tempfile.TemporaryDirectory() as folder:
        found = _write_or_skip(candidate, model, folder, may_refuse)
        ids_BT = torch.randint(0, 50, (9, 7))
        demand(found.spec is None, "a model without a spec has one")
        demand(found.input_dtype == "int64", f"it takes {found.input_dtype}, not int64")
        near = torch.allclose(found(ids_BT).embedding_BD, model(ids_BT).embedding_BD, atol=1e-4)
        demand(near, "it differs from PyTorch on token ids")
        text = refused(lambda: found(ids_BT.float()), "fractions as token ids")
        demand("takes int64, got torch.float32" in text, f"fractions are refused with: {text}")


class Fickle(nn.Linear):
    """A layer whose path depends on the values of its input."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.mean((2, 3))) * (2 if x_BCHW.sum() > 0 else 3)


def unwritable_models_are_named(candidate: Candidate) -> None:
    """What cannot be exported is said in one line with the module."""
    model = Wrapped(nn.Sequential(nn.Identity(), Fickle(3, 3)), torch.rand(2, 3, 8, 8))
    with tempfile.TemporaryDirectory() as folder:
        text = refused(
            lambda: write(candidate, model, Path(folder)), "a model that depends on its input"
        )
    named = "cannot export 'Sequential'" in text and "('1')" in text
    demand(named and "depends on the values" in text, f"such a model is refused with: {text}")


def missing_library_is_named(candidate: Candidate) -> None:
    """A library that is missing is named, with the extra that installs it."""
    cls = candidate.cls
    without = type(cls.__name__, (cls,), {"module": ABSENT, "__module__": cls.__module__})
    text = refused(without.require, "a missing library")
    named = f"{cls.kind} requires {ABSENT}" in text
    demand(named, f"a missing library is refused with: {text}")
    extra = cls.extra is None or f"ssdistill[{cls.extra}]" in text
    demand(extra, f"a missing library is refused without its extra: {text}")


def _is_quick(candidate: Candidate) -> bool:
    return not candidate.cls.compiles


RUNTIME_CHECKS = {
    **DESCRIBED,
    "description": Check(says_what_it_is),
    "missing_library": Check(missing_library_is_named),
    "model_untouched": Check(encoder_is_left_as_it_was),
    "agreement": Check(agrees_at_any_batch_size),
    "model": Check(is_a_runtime_model),
    "threads": Check(takes_a_number_of_threads),
    "damaged_files": Check(other_files_are_refused),
    "another_model": Check(another_model_is_noticed),
    "uint8": Check(takes_uint8_of_compressed_encoders, _is_quick),
    "token_ids": Check(takes_token_ids, _is_quick),
    "unwritable": Check(unwritable_models_are_named, _is_quick),
}
