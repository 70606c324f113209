import copy
import shutil

import onnx
import pytest
import torch

import ssdistill.artifacts.runtimes
import ssdistill.artifacts.runtimes.onnx_runtime as export_module
import ssdistill.compress.quantize as quantize_module
from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.artifacts.runtimes.onnx_runtime import export_onnx
from ssdistill.compress import Context
from ssdistill.compress.int8.onnx_layers import chosen_nodes, gate_nodes, layer_nodes
from ssdistill.compress.prune import Prune
from ssdistill.compress.quantize import OnnxEncoder, Quantize
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters, file_bytes
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS

SMALL = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    return build_encoder(settings, 32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).eval()


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_onnx(encoder, path)
    return path


@pytest.fixture
def export_once(exported, monkeypatch):
    """Exporting takes seconds: let a step copy what was exported before."""
    copy = lambda _, path: shutil.copy(exported, path)  # noqa: E731
    monkeypatch.setattr(quantize_module, "export_onnx", copy)


def images(n, seed):
    """Smooth random images: coarse noise, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    coarse_BCHW = torch.rand(min(n, 100), 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse_BCHW, 32, mode="bilinear")


@pytest.fixture(scope="module")
def int8(encoder, tmp_path_factory):
    context = Context(images, tmp_path_factory.mktemp("int8"))
    found = Quantize(scheme="u8s8", calibration_images=64, check_images=36).apply(encoder, context)
    return found, context


@torch.no_grad()
def test_export_matches_pytorch_at_any_batch_size_and_stays_quiet(encoder, tmp_path, capfd):
    path = tmp_path / "model.onnx"
    assert export_onnx(encoder.train(), path) < 1e-5
    assert encoder.training
    encoder.eval()
    assert capfd.readouterr() == ("", "")
    onnx = OnnxEncoder(path, encoder.embed_dim, encoder.spec)
    for batch in (1, 5):
        x_BCHW = images(batch, 0)
        assert torch.allclose(onnx(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD, atol=1e-5)


def test_an_export_that_disagrees_is_refused(encoder, exported, tmp_path, monkeypatch):
    copy = lambda _, path, __: shutil.copy(exported, path)  # noqa: E731
    monkeypatch.setattr(export_module, "_write_onnx", copy)
    wrong = lambda self, x_BCHW: encoder(x_BCHW * 0.5)  # noqa: E731
    monkeypatch.setattr(OnnxEncoder, "__call__", wrong)
    with pytest.raises(UserError, match="differs from PyTorch on 'resnet10t'"):
        export_onnx(encoder, tmp_path / "model.onnx")


@torch.no_grad()
def test_int8_is_close_small_and_really_int8(encoder, exported, int8):
    found, context = int8
    record = context.record
    assert record["quantize_nodes"] > 5 and record["int8_weights"] == 9
    assert record["cosine"] > 0.95 and record["cka"] > 0.95
    assert record["cosine_p01"] <= record["cosine"]
    assert (record["runtime"], record["mode"], record["scheme"]) == (
        "onnxruntime",
        "static",
        "u8s8",
    )
    x_BCHW = images(7, 9)
    assert found(x_BCHW).embedding_BD.shape == (7, encoder.embed_dim)
    assert not torch.equal(found(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
    counterpart = OnnxEncoder(exported, encoder.embed_dim, encoder.spec)
    assert count_parameters(found) == count_parameters(counterpart)
    assert file_bytes(context.folder) < 0.4 * exported.stat().st_size
    assert [p.name for p in context.folder.iterdir()] == ["model.onnx"]


def test_an_int8_encoder_is_saved_opened_and_behaves_like_an_encoder(int8, tmp_path):
    found, _ = int8
    save_encoder(found, tmp_path, {"parent": "b"})
    again = load(tmp_path)
    x_BCHW = images(4, 1)
    assert isinstance(again, OnnxEncoder) and again.embed_dim == found.embed_dim
    assert torch.equal(again.eval().to("cpu")(x_BCHW).embedding_BD, found(x_BCHW).embedding_BD)
    again.session_threads = 1
    assert again.session_threads == 1
    with pytest.raises(UserError, match="cannot be trained"):
        again.train()
    with pytest.raises(UserError, match="count its PyTorch parent"):
        count_macs(again)


@pytest.mark.parametrize("name", ["cosine", "cka"])
@pytest.mark.parametrize("value", [float("nan"), 0.1])
def test_an_agreement_that_is_low_or_no_number_is_refused(
    encoder, exported, tmp_path, monkeypatch, name, value
):
    fine = {"cosine": 1.0, "cosine_p01": 1.0, "cka": 1.0}
    monkeypatch.setattr(quantize_module, "agreement_of", lambda *_: fine | {name: value})
    opened = OnnxEncoder(exported, encoder.embed_dim, encoder.spec)
    monkeypatch.setattr(Quantize, "_writer", lambda self: lambda *_: (opened, {}))
    with pytest.raises(UserError, match=rf"{name} is {value:.3f} and min_{name} is"):
        Quantize().apply(encoder, Context(images, tmp_path))


@pytest.mark.parametrize("calibration", ["percentile", "entropy", "mse"])
def test_histogram_calibrations_take_any_number_of_images(
    encoder, export_once, tmp_path, calibration, capfd
):
    context = Context(images, tmp_path)
    Quantize(calibration=calibration, calibration_images=45, check_images=20).apply(
        encoder, context
    )
    assert context.record["cosine"] > 0.9
    assert capfd.readouterr() == ("", "")


def test_images_for_calibration_and_check_are_distinct(encoder, tmp_path):
    context = Context(lambda n, seed: torch.arange(100.0).view(100, 1, 1, 1), tmp_path)
    calibration, check = Quantize(calibration_images=300, check_images=100)._images(context)
    assert (len(calibration), len(check)) == (75, 25)
    assert not set(calibration.flatten().tolist()) & set(check.flatten().tolist())
    assert check.flatten().tolist() != list(range(75, 100))


def test_a_pruned_encoder_can_be_quantized(encoder, tmp_path):
    context = Context(images, tmp_path)
    pruned = Prune(ratio=0.5).apply(encoder, context)
    found = Quantize(calibration_images=32, check_images=16).apply(pruned, context)
    assert context.record["cosine"] > 0.9
    with pytest.raises(UserError, match="prune cannot follow quantize"):
        Prune(ratio=0.5).apply(found, context)
    with pytest.raises(
        UserError, match=r"cannot follow quantize or export: .* is a file for onnxruntime"
    ):
        Quantize().apply(found, context)


@pytest.mark.parametrize("floor", ["min_cosine", "min_cka"])
def test_disagreement_below_the_floor_is_an_error(encoder, export_once, tmp_path, floor):
    step = Quantize(calibration_images=16, check_images=16, **{floor: 1.0})
    with pytest.raises(UserError, match=rf"and {floor} is 1\.0"):
        step.apply(encoder, Context(images, tmp_path))


def test_a_file_without_int8_is_an_error(encoder, export_once, tmp_path):
    step = Quantize(calibration_images=16, check_images=16, operators=["LSTM"])
    with pytest.raises(UserError, match="no operator became int8"):
        step.apply(encoder, Context(images, tmp_path))


@pytest.mark.parametrize(("reduce_range", "words"), [(False, "reduce_range=true"), (True, "")])
def test_overflows_of_this_processor_are_said(
    encoder, export_once, tmp_path, monkeypatch, caplog, reduce_range, words
):
    monkeypatch.setattr("ssdistill.compress.quantize.int8_saturates", lambda: True)
    step = Quantize(calibration_images=16, check_images=16, reduce_range=reduce_range)
    step.apply(encoder, Context(images, tmp_path))
    assert words in caplog.text and ("no VNNI" in caplog.text) is not reduce_range


@pytest.mark.parametrize(("machine", "scheme"), [("x86_64", "u8s8"), ("aarch64", "s8s8")])
def test_auto_takes_the_scheme_of_the_processor(monkeypatch, machine, scheme):
    monkeypatch.setattr(ssdistill.artifacts.runtimes.platform, "machine", lambda: machine)
    assert Quantize().scheme == scheme


class SelfAttention(torch.nn.Module):
    """Two heads of 8."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x_BTC):
        q, k, v = self.qkv(x_BTC).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Tokens(torch.nn.Module):
    """A tiny language model: token ids (B, T) -> (B, 16)."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 16)
        self.attention, self.out = SelfAttention(), torch.nn.Linear(16, 16)

    def forward(self, ids_BT):
        x_BTC = self.words(ids_BT)
        return self.out((x_BTC + self.attention(x_BTC)).relu()).mean(1)


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    ids_BT = torch.randint(0, 50, (64, 6))
    return Wrapped(Tokens().eval(), ids_BT[:4]), ids_BT


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_module_of_token_ids_can_be_quantized(tokens, tmp_path, mode):
    model, ids_BT = tokens
    context = Context(lambda n, seed: ids_BT[:n], tmp_path)
    found = Quantize(mode=mode, calibration_images=32, check_images=32).apply(model, context)
    assert found.spec is None and found(ids_BT[:3]).embedding_BD.shape == (3, 16)
    assert context.record["cosine"] > 0.9 and context.record["int8_weights"] >= 3
    if mode == "dynamic":
        assert context.record["int8_products"] >= 3
    graph = onnx.load(found.path).graph
    quantized = {n.op_type for n in graph.node if n.op_type in ("QuantizeLinear", "Conv")}
    assert quantized == ({"QuantizeLinear"} if mode == "static" else set())


def test_convolutions_are_not_quantized_dynamically_by_default(encoder, export_once, tmp_path):
    step = Quantize(mode="dynamic", calibration_images=16, check_images=16)
    with pytest.raises(UserError, match=r"no operator became int8 .* use mode=static"):
        step.apply(encoder, Context(images, tmp_path))


def test_layers_are_left_float_by_name(encoder, exported, export_once, tmp_path):
    context = Context(images, tmp_path)
    step = Quantize(
        float_layers=["layer1", "layer*.0.conv2"], calibration_images=16, check_images=16
    )
    found = step.apply(encoder, context)
    assert context.record["int8_weights"] == 9 - 4
    graph = onnx.load(exported).graph
    nodes = layer_nodes(graph, encoder.net)
    assert len(nodes) == len(set(nodes.values())) == 9
    assert nodes["layer1.0.conv1"] in chosen_nodes(graph, encoder.net, ["layer1"])
    floats = {t.name for t in onnx.load(found.path).graph.initializer if t.data_type == 1}
    assert any(name.endswith("layer2.0.conv2.weight") for name in floats)
    assert not any(name.endswith("layer2.0.conv1.weight") for name in floats)
    with pytest.raises(UserError, match=r"float_layers: no convolution or linear .* 'layer9'"):
        chosen_nodes(graph, encoder.net, ["layer9"])


def test_squeeze_excite_gates_are_found_in_the_graph(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(name="test_efficientnet"), 32).eval()
    export_onnx(encoder, tmp_path / "float.onnx")
    graph = onnx.load(tmp_path / "float.onnx").graph
    layers = {node: name for name, node in layer_nodes(graph, encoder.net).items()}
    gates = {layers[node] for node in gate_nodes(graph) if node in layers}
    inside = {name for name in layers.values() if ".se." in name}
    assert gates == inside and inside


def test_bias_correction_brings_the_mean_output_closer(encoder, tmp_path):
    means, encoder = {}, copy.deepcopy(encoder)
    # The exporter drops biases that are zero.
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1)
    x_BCHW = images(64, 0)
    with torch.no_grad():
        float_D = encoder(x_BCHW).embedding_BD.mean(0)
    for corrected in (False, True):
        context = Context(images, tmp_path)
        step = Quantize(bias_correction=corrected, calibration_images=64, check_images=36)
        found = step.apply(encoder, context)
        means[corrected] = (found(x_BCHW).embedding_BD.mean(0) - float_D).norm()
        assert context.record.get("corrected_biases", 0) == (9 if corrected else 0)
    assert means[True] < means[False]


def test_an_equalized_encoder_is_quantized_and_the_given_one_left_alone(encoder, tmp_path):
    before = copy.deepcopy(encoder.state_dict())
    context = Context(images, tmp_path)
    Quantize(equalize=True, calibration_images=32, check_images=16).apply(encoder, context)
    assert context.record["equalized_pairs"] == 3 and context.record["cosine"] > 0.9
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_inputs_the_model_cannot_take_are_refused(encoder, tmp_path):
    for draw, message in (
        (lambda n, seed: images(n, seed)[..., :16], r"\(3, 32, 16\), but 'resnet10t' takes"),
        (lambda n, seed: (images(n, seed) * 255).long(), "torch.int64 of"),
        (lambda n, seed: images(n, seed) * 4 - 2, r"must be in \[0, 1\]"),
        (lambda n, seed: images(7, seed), "at least 8 inputs, got 7"),
    ):
        with pytest.raises(UserError, match=message):
            Quantize().apply(encoder, Context(draw, tmp_path))


def test_weights_that_are_no_numbers_are_named(encoder, tmp_path):
    broken = copy.deepcopy(encoder)
    broken.net.layer2[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"tensor '.*layer2\.0\.conv1\.weight' of 'resnet10t'"):
        Quantize().apply(broken, Context(images, tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "bf16"}, "mode=bf16: runtime=onnxruntime computes in bf16 only with"),
        (
            {"mode": "dynamic", "runtime": "openvino"},
            "mode=dynamic: runtime=openvino has no dynamic",
        ),
        ({"runtime": "openvino", "calibration": "entropy"}, "quantize.calibration=entropy"),
        ({"runtime": "openvino", "operators": ["Conv"]}, "quantize.operators"),
        ({"runtime": "torchao", "bias_correction": True}, "quantize.bias_correction"),
        ({"mode": "dynamic", "scheme": "u8s8"}, "quantize.scheme=u8s8"),
    ],
)
def test_what_a_runtime_lacks_is_said_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        Quantize(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({}, "int8"),
        ({"mode": "dynamic"}, "int8_dynamic"),
        ({"runtime": "openvino"}, "int8_openvino"),
        ({"runtime": "openvino", "mode": "bf16"}, "int8_bf16_openvino"),
        ({"runtime": "executorch"}, "int8_executorch"),
    ],
)
def test_rows_say_what_runs_the_file(settings, row):
    chosen = STEPS.schema("quantize")(**settings)
    assert Quantize.row(chosen) == row and isinstance(STEPS.build(chosen), Quantize)
