"""What every registered runtime must do; a new one is tested without being named."""

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.artifacts.runtimes import check
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder, OnnxRuntime
from ssdistill.errors import UserError
from ssdistill.models.representation import Representation
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.adding import look_again, register
from ssdistill.settings.registry import RUNTIMES
from ssdistill.testing import RUNTIME_CHECKS, Candidate
from ssdistill.testing.runtimes import (
    takes_a_number_of_threads,
    takes_token_ids,
    takes_uint8_of_compressed_encoders,
)
from ssdistill.testing.tiny_networks import normalized_cnn

ALL = {kind: Candidate(RUNTIMES, cls) for kind, cls in sorted(RUNTIMES.classes.items())}
QUICK = [kind for kind in ALL if not RUNTIMES[kind].compiles]
STRICTER = {"threads", "uint8", "token_ids"}
"""Checks that are made below, of more than a runtime of somebody else promises."""
CASES = [
    pytest.param(check, kind, id=f"{kind}-{name}")
    for kind in ALL
    for name, check in RUNTIME_CHECKS.items()
    if name not in STRICTER and check.applies(ALL[kind])
]


@pytest.mark.parametrize(("check", "kind"), CASES)
def test_a_runtime(check, kind):
    check.run(ALL[kind])


@pytest.mark.parametrize("kind", ALL)
def test_a_file_takes_a_number_of_threads(kind):
    takes_a_number_of_threads(ALL[kind], threads_while_running)


@pytest.mark.parametrize("kind", QUICK)
def test_uint8_pictures_of_another_size_through_pruned_and_factorized_layers(kind):
    takes_uint8_of_compressed_encoders(ALL[kind], may_refuse=False)


@pytest.mark.parametrize("kind", QUICK)
def test_token_ids(kind):
    takes_token_ids(ALL[kind], may_refuse=False)


def threads_while_running(found, x):
    """How many threads a file runs ``x`` with, according to its runtime."""
    if found.runtime == "onnxruntime":
        return found.session.get_session_options().intra_op_num_threads
    if found.runtime == "openvino":
        return found._compiled.get_property("INFERENCE_NUM_THREADS")
    if found.runtime == "executorch":
        from executorch.extension.pybindings import portable_lib

        found(x)
        return portable_lib._threadpool_get_thread_count()
    name = {"torch_export": "module", "aot_inductor": "package"}[found.runtime]
    seen, program = [], getattr(found, name)

    def note(inputs):
        seen.append(torch.get_num_threads())
        return program(inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found, name, note)
        found(x)
    return seen[-1]


def test_a_file_that_answers_nan_is_refused():
    encoder = normalized_cnn()

    class Broken:
        def __call__(self, x):
            embedding_BD = encoder(x).embedding_BD.clone()
            embedding_BD[1, 2] = float("nan")
            return Representation(embedding_BD)

        def version(self):
            return "broken 1.0"

    with pytest.raises(UserError, match=r"1\.0 differs from PyTorch on 'resnet10t' by nan"):
        check(encoder, Broken())


class Constant(nn.Module):
    """Says (largest, 0) of everything."""

    def __init__(self, largest):
        super().__init__()
        self.layer = nn.Linear(1, 2)
        nn.init.zeros_(self.layer.weight)
        with torch.no_grad():
            self.layer.bias.copy_(torch.tensor([largest, 0.0]))

    def forward(self, x_B1):
        return self.layer(x_B1)


@pytest.mark.parametrize(("largest", "unit"), [(0.1, 1.0), (1.0, 1.0), (100.0, 100.0)])
def test_a_difference_is_tolerated_in_units_of_the_largest_number_if_that_is_above_one(
    largest, unit
):
    model = Wrapped(Constant(largest).eval(), torch.zeros(4, 1))

    class Off:
        def __init__(self, difference):
            self.difference = difference

        def __call__(self, x):
            return Representation(model(x).embedding_BD - self.difference)

        def version(self):
            return "off 1.0"

    assert check(model, Off(0.09 * unit), 0.1) == pytest.approx(0.09 * unit, rel=1e-4)
    with pytest.raises(UserError, match="differs from PyTorch"):
        check(model, Off(0.11 * unit), 0.1)


def test_the_names_of_files_are_distinct():
    files = [RUNTIMES[kind].file for kind in ALL]
    assert len(set(files)) == len(files)


class OwnFile(OnnxEncoder):
    runtime = "own_runtime"


class OwnRuntime(OnnxRuntime):
    """ONNX Runtime by another name, as a package could add it."""

    kind, paper, opens = "own_runtime", "none", OwnFile


def test_a_file_for_the_runtime_of_a_package_that_is_absent_names_it(
    plugins, make_encoder, tmp_path
):
    register(OwnRuntime)
    encoder = make_encoder().eval()
    OwnRuntime().write(encoder, tmp_path / "model.onnx")
    found = OwnFile(tmp_path / "model.onnx", encoder.embed_dim, encoder.spec)
    save_encoder(found, tmp_path / "saved")
    assert isinstance(load(tmp_path / "saved"), OwnFile)
    plugins.clear()
    look_again()
    with pytest.raises(UserError, match="is of the package test_runtimes, which has not been imp"):
        load(tmp_path / "saved")
