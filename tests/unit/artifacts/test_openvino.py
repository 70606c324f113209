import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("openvino")

import ssdistill.artifacts.runtimes.openvino as openvino_module
import ssdistill.compress.int8.openvino_file as int8_module
from ssdistill.artifacts.runtimes.openvino import OpenVino, OpenVinoModel
from ssdistill.compress import Context
from ssdistill.compress.quantize import Quantize
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import RUNTIMES


class Small(nn.Module):
    """Two convolutions with a squeeze-excite gate between them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(),
                                  nn.Conv2d(4, 16, 1), nn.Hardsigmoid())  # fmt: skip
        self.last = nn.Conv2d(16, 32, 3, 1, 1)

    def forward(self, x_BCHW):
        x_BCHW = self.stem(x_BCHW).relu()
        return self.last(x_BCHW * self.gate(x_BCHW)).relu().mean((2, 3))


def images(n, seed):
    coarse_BCHW = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse_BCHW, 8, mode="bilinear")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Wrapped(Small().eval(), images(4, 5))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """One folder per variant."""
    folders = {}
    for name, settings in {
        "fp32": {},
        "fp16": {"weights": "fp16"},
        "bf16": {"weights": "fp16", "arithmetic": "bf16"},
    }.items():
        folders[name] = tmp_path_factory.mktemp(name)
        OpenVino(**settings).write(model, folders[name] / OpenVino.file)
    return folders


@torch.no_grad()
@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 5e-2)])
def test_a_written_file_agrees_at_any_batch_size(model, written, variant, tolerance):
    found = OpenVinoModel(written[variant] / "model.xml", model.embed_dim)
    for batch in (1, 3):
        x_BCHW = images(batch, 1)
        expected_BD = model(x_BCHW).embedding_BD
        difference = (found(x_BCHW).embedding_BD - expected_BD).abs().max()
        assert difference <= tolerance * expected_BD.abs().max()
    assert {p.name for p in written[variant].iterdir()} == set(OpenVino.files)


def test_results_of_two_calls_do_not_share_memory(written):
    found = OpenVinoModel(written["fp32"] / "model.xml", 32)
    first_BD = found(images(2, 1)).embedding_BD
    kept_BD = first_BD.clone()
    found(images(2, 2))
    assert torch.equal(first_BD, kept_BD)


def test_half_of_the_weights_is_half_the_file(written):
    size = {name: (folder / "model.bin").stat().st_size for name, folder in written.items()}
    assert size["fp16"] == size["bf16"] < 0.55 * size["fp32"]


def test_a_file_says_what_it_is_computed_in_and_threads_can_be_set(written):
    # Left to itself OpenVINO rounds products to bf16 wherever the processor can.
    for name, folder in written.items():
        found = OpenVinoModel(folder / "model.xml", 32, None, 1)
        graph = openvino_module._arithmetic(found._graph)
        assert graph == ("bf16" if name == "bf16" else "f32")
        assert found._compiled.get_property("INFERENCE_NUM_THREADS") == 1
        found.session_threads = 2
        assert found._compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert OpenVinoModel.version().startswith("openvino 20")
    assert RUNTIMES["openvino"] is OpenVino and OpenVinoModel.runtime == "openvino"


def test_token_ids_stay_integers(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 8)

        def forward(self, ids_BT):
            return self.words(ids_BT).mean(1)

    ids_BT = torch.arange(12).view(3, 4)
    model = Wrapped(Tokens().eval(), ids_BT)
    OpenVino().write(model, tmp_path / "model.xml")
    found = OpenVinoModel(tmp_path / "model.xml", 8)
    assert found.input_dtype == "int64"
    assert torch.allclose(found(ids_BT).embedding_BD, model(ids_BT).embedding_BD, atol=1e-6)


def test_a_file_without_weights_or_of_another_kind_is_refused(written, tmp_path):
    (tmp_path / "model.xml").write_text("<net></net>")
    with pytest.raises(UserError, match=r"model\.bin: no such file or folder; copy it with m"):
        OpenVinoModel(tmp_path / "model.xml", 32)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="OpenVINO cannot open") as error:
        OpenVinoModel(tmp_path / "model.xml", 32)
    assert "\n" not in str(error.value)


def test_a_missing_runtime_names_its_extra(model, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenVino, "module", "no_such_openvino")
    with pytest.raises(UserError, match=r"pip install 'ssdistill\[openvino\]'"):
        OpenVino().write(model, tmp_path / "model.xml")


def test_bf16_needs_no_calibration_and_halves_the_file(model, written, tmp_path):
    context = Context(images, tmp_path)
    step = Quantize(runtime="openvino", mode="bf16", calibration_images=8, check_images=24)
    found = step.apply(model, context)
    assert isinstance(found, OpenVinoModel) and context.record["cosine"] > 0.99
    assert openvino_module._arithmetic(found._graph) == "bf16"


@pytest.fixture
def nncf():
    return pytest.importorskip("nncf")


def int8_layers(path):
    """How many weights of a file are 8-bit integers, by the number of their numbers."""
    import openvino

    graph = openvino.Core().read_model(path)
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    return sorted(
        torch.Size(c.shape).numel()
        for c in constants
        if c.get_element_type().get_type_name() in ("i8", "u8") and len(c.shape) > 1
    )


def test_int8_is_small_close_and_leaves_the_gate_float(nncf, model, written, tmp_path):
    before = copy.deepcopy(model.state_dict())
    context = Context(images, tmp_path)
    step = Quantize(runtime="openvino", calibration_images=24, check_images=24)
    found = step.apply(model, context)
    record = context.record
    assert record["cosine"] > 0.9 and record["quantize_nodes"] >= 2
    assert int8_layers(found.path) == [3 * 16 * 9, 16 * 32 * 9]
    assert (tmp_path / "model.bin").stat().st_size < 0.4 * (
        written["fp32"] / "model.bin"
    ).stat().st_size
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_int8_leaves_the_layers_float_that_are_named(nncf, model, tmp_path):
    context = Context(images, tmp_path)
    step = Quantize(runtime="openvino", float_layers=["stem"], calibration="mse",
                    calibration_images=24, check_images=24)  # fmt: skip
    found = step.apply(model, context)
    assert int8_layers(found.path) == [4 * 16, 4 * 16, 16 * 32 * 9]


def test_a_file_in_which_nothing_is_int8_is_refused(nncf):
    class Nothing:
        def get_ops(self):
            return []

    with pytest.raises(UserError, match="no operator became int8 for openvino"):
        int8_module.count_int8(Nothing())


CTRL_C = """
import faulthandler, gc, os, signal, sys, threading, time
from pathlib import Path
from ssdistill.artifacts.runtimes.openvino import OpenVinoModel

faulthandler.enable()
# A job in the background of a shell starts with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
first, second = (OpenVinoModel(Path(sys.argv[1]), 32) for _ in range(2))
for model in (first, second):
    model._open(1)
del model, first
collect = threading.Thread(target=globals().pop, args=("second",))
collect.start()
collect.join()
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)  # another thread may have been given the signal
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_heard_after_models_were_closed_in_any_order_by_any_thread(written):
    """OpenVINO frees the stack signals are handled on; this ended Python without a word."""
    path = written["fp32"] / OpenVino.file
    command = [sys.executable, "-c", CTRL_C, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, "interrupted\n"), found.stderr


def test_why_a_graph_is_not_converted_is_said_by_the_last_line(tmp_path):
    def convert_model(source):
        raise RuntimeError("a long story\nno such operator: Foo\n")

    with pytest.raises(UserError, match="cannot convert 'net' to OpenVINO: no such operator"):
        openvino_module.convert(
            tmp_path / "net.onnx", "net", SimpleNamespace(convert_model=convert_model)
        )
