import importlib.util
import sys

import pytest
import torch

pytest.importorskip("torchao")

import ssdistill.compress.int8.pt2e as module
from ssdistill.artifacts.runtimes.torch_export import TorchExport
from ssdistill.artifacts.runtimes.tracing import ready
from ssdistill.compress.int8.pt2e import count_int8, int8_program, quantize_pt2e, runtime_of
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped

# Wide enough that weights are most of the file.
SMALL = {"layers": (1, 1, 0, 0), "channels": (32, 128, 16, 16), "stem_type": "deep",
         "stem_width": 16, "zero_init_last": False}  # fmt: skip
TARGETS = ["torchao"]
if importlib.util.find_spec("executorch"):
    TARGETS.append("executorch")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    return build_encoder(settings, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).eval()


def images(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse_BCHW = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse_BCHW, 16, mode="bilinear")


@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_the_file_is_a_quarter_and_agrees(encoder, target, tmp_path):
    TorchExport().write(encoder, tmp_path / "float.pt2")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    name = "model.pte" if target == "executorch" else "model.exported.pt2"
    found = quantize_pt2e(encoder, images(48), tmp_path / name, target)
    weights = sum(p.numel() for p in encoder.net.parameters())
    assert found.path == tmp_path / name and type(found) is runtime_of(name, target).opens
    assert found.path.stat().st_size < weights + 0.25 * (tmp_path / "float.pt2").stat().st_size
    for batch in (1, 3, 70):
        x_BCHW = images(batch, seed=2)
        expected_BD, found_BD = encoder(x_BCHW).embedding_BD, found(x_BCHW).embedding_BD
        assert torch.cosine_similarity(expected_BD, found_BD).min() > 0.98
        assert not torch.allclose(expected_BD, found_BD, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_no_float_weight_stays(encoder):
    program = int8_program(ready(encoder), images(8), "torchao")
    tensors = [*program.state_dict.values(), *program.constants.values()]
    large = [t for t in tensors if isinstance(t, torch.Tensor) and t.numel() > 400]
    assert large and all(t.dtype == torch.int8 for t in large)
    assert not program.example_inputs or len(program.example_inputs[0]) == 1


def test_calibration_sets_the_ranges(encoder, tmp_path):
    x_BCHW = images(4, seed=2)
    right = quantize_pt2e(encoder, images(16), tmp_path / "a.pt2")(x_BCHW).embedding_BD
    wrong = quantize_pt2e(encoder, images(16) * 1e-2, tmp_path / "b.pt2")(x_BCHW).embedding_BD
    expected = encoder(x_BCHW).embedding_BD
    assert (right - expected).abs().mean() < 0.5 * (wrong - expected).abs().mean()


def test_a_network_of_which_nothing_becomes_int8_is_refused(tmp_path):
    model = Wrapped(torch.nn.Sequential(torch.nn.LayerNorm(5)), torch.rand(2, 5))
    with pytest.raises(UserError, match="no layer of 'Sequential' became int8"):
        quantize_pt2e(model, torch.rand(4, 5), tmp_path / "model.exported.pt2")


def test_counts_are_of_what_is_there():
    graph = torch.fx.symbolic_trace(torch.nn.Linear(2, 2))
    assert count_int8(graph) == {"quantize_nodes": 0, "int8_weights": 0}


def test_the_runtime_follows_from_path_and_target():
    kinds = [runtime_of(*pair).kind for pair in (("model.aoti.pt2", "torchao"),
             ("model.exported.pt2", "torchao"), ("model.pte", "executorch"))]  # fmt: skip
    assert kinds == ["aot_inductor", "torch_export", "executorch"]


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    with pytest.raises(UserError, match=r"requires torchao .*ssdistill\[torchao\]"):
        module.require_torchao()
