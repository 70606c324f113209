"""What a loaded encoder may be called with, in every runtime."""

import copy
import json

import numpy as np
import pytest
import torch

from ssdistill import load
from ssdistill.artifacts import artifact as artifacts
from ssdistill.artifacts.artifact import save_encoder
from ssdistill.artifacts.runtimes.tracing import Embedding
from ssdistill.compress.export import Uint8Encoder
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.bare_onnx import BareOnnx
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.inputs import as_images, check_images
from ssdistill.settings.registry import RUNTIMES

SMALL = {"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
QUICK = [kind for kind in sorted(RUNTIMES.classes) if not RUNTIMES[kind].compiles]
SIDE = 16


def encoder_of(seed=0):
    torch.manual_seed(seed)
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    return build_encoder(settings, SIDE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).eval()


def save_for(kind, folder, uint8=False):
    encoder = encoder_of()
    if kind == "torch":
        save_encoder(encoder, folder / "model")
        return
    runtime = RUNTIMES[kind]
    try:
        runtime.require()
    except UserError as error:
        pytest.skip(str(error))
    runtime().write(Uint8Encoder(encoder) if uint8 else encoder, folder / runtime.file)
    save_encoder(runtime.opens(folder / runtime.file, 8, encoder.spec), folder / "model")


@pytest.fixture(scope="module", params=["torch", *QUICK])
def loaded(request, tmp_path_factory):
    """An encoder that was saved and loaded, and what PyTorch says before."""
    folder = tmp_path_factory.mktemp(request.param)
    save_for(request.param, folder)
    return load(folder / "model")


@pytest.fixture(scope="module", params=QUICK)
def of_bytes(request, tmp_path_factory):
    """One whose file takes uint8."""
    folder = tmp_path_factory.mktemp(f"{request.param}-uint8")
    save_for(request.param, folder, uint8=True)
    return load(folder / "model")


def bytes_BCHW(count=4):
    shape, generator = (count, 3, SIDE, SIDE), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@torch.no_grad()
def embedding(encoder, x_BCHW):
    return encoder(x_BCHW).embedding_BD


def refused(encoder, x_BCHW):
    with pytest.raises(UserError) as caught:
        embedding(encoder, x_BCHW)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def test_uint8_images_are_scaled(loaded):
    x_BCHW = bytes_BCHW()
    expected_BD = encoder_of()(x_BCHW.float() / 255).embedding_BD
    found_BD = embedding(loaded, x_BCHW)
    assert torch.allclose(found_BD, expected_BD, atol=1e-4)
    assert torch.equal(found_BD, embedding(loaded, x_BCHW.float() / 255))


@torch.no_grad()
def test_a_file_that_takes_uint8_is_given_it_either_way(of_bytes):
    x_BCHW = bytes_BCHW()
    assert of_bytes.input_dtype == np.uint8
    expected_BD = encoder_of()(x_BCHW.float() / 255).embedding_BD
    for given in (x_BCHW, x_BCHW.float() / 255, (x_BCHW.double() / 255)):
        assert torch.allclose(embedding(of_bytes, given), expected_BD, atol=1e-4)
    assert "got torch.int64" in refused(of_bytes, x_BCHW.long())
    assert "divide by 255" in refused(of_bytes, x_BCHW.float())
    assert "got NaN" in refused(of_bytes, x_BCHW.float() * float("nan"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_taken(loaded, dtype):
    x_BCHW = (bytes_BCHW().float() / 255).to(dtype)
    expected_BD = embedding(loaded, x_BCHW.float())
    assert torch.allclose(embedding(loaded, x_BCHW), expected_BD, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
                                   torch.complex64, torch.uint16])  # fmt: skip
def test_other_numbers_are_refused(loaded, dtype):
    text = refused(loaded, bytes_BCHW().clamp(0, 1).to(dtype))
    assert f"takes uint8 images or float images in [0, 1], got {dtype}" in text


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x * 255, "divide by 255 or pass uint8"),
        (lambda x: x * 2 - 1, "normalization is built in"),
        (lambda x: (x - 0.45) / 0.22, "normalization is built in"),
        (lambda x: x + 0.01, "got values from"),
        (lambda x: x - 0.01, "got values from"),
        (lambda x: x * 1e6, "got values from"),
        (lambda x: x.where(x < 0.999, torch.tensor(float("nan"))), "got NaN"),
        (lambda x: x.where(x < 0.999, torch.tensor(float("inf"))), "got values from 0 to inf"),
        (lambda x: x.half() * 200, "divide by 255"),
    ],
)
def test_values_outside_of_the_unit_interval_are_refused(loaded, change, words):
    x_BCHW = torch.linspace(0, 1, 2 * 3 * SIDE * SIDE).view(2, 3, SIDE, SIDE)
    text = refused(loaded, change(x_BCHW))
    assert "takes uint8 images or float images in [0, 1], got" in text and words in text


def test_rounding_is_no_fault(loaded):
    x_BCHW = torch.linspace(0, 1, 2 * 3 * SIDE * SIDE).view(2, 3, SIDE, SIDE)
    embedding(loaded, x_BCHW * 1.0005)
    embedding(loaded, x_BCHW - 0.0005)


@pytest.mark.parametrize(
    "shape, words",
    [((3, SIDE, SIDE), "x[None]"), ((2, SIDE, SIDE, 3), "x.permute(0, 3, 1, 2)"),
     ((2, 1, SIDE, SIDE), "x.expand(-1, 3, -1, -1)"), ((2, 4, SIDE, SIDE), "three channels"),
     ((SIDE, SIDE), "three channels"), ((2, 3, 0, SIDE), "axis of size 0"),
     ((1, 2, 3, SIDE, SIDE), "x.flatten(0, 1)"), ((), "three channels")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_other_shapes_are_refused_with_what_to_do(loaded, shape, words, dtype):
    text = refused(loaded, torch.zeros(shape, dtype=dtype))
    assert f"takes images of shape (B, 3, H, W), got {shape}" in text and words in text


def test_no_images_give_no_embeddings(loaded):
    assert embedding(loaded, torch.zeros(0, 3, SIDE, SIDE)).shape == (0, 8)


@pytest.mark.parametrize("given", [None, "x.png", np.zeros((1, 3, SIDE, SIDE)), [[0.5]], 3])
def test_what_is_no_tensor_is_refused(loaded, given):
    assert "takes a torch.Tensor (B, 3, H, W), got" in refused(loaded, given)


def test_a_size_that_a_runtime_cannot_take_is_said_in_one_line(loaded):
    if isinstance(loaded, torch.nn.Module):
        pytest.skip("a convolutional network takes any")
    text = refused(loaded, torch.zeros(2, 3, SIDE + 8, SIDE + 8))
    assert str(loaded.path) in text and str(SIDE + 8) in text


@pytest.mark.parametrize("name, args", [
    ("vit_tiny_patch16_224", {"img_size": SIDE, "patch_size": 8, "embed_dim": 8, "depth": 1,
                              "num_heads": 2}),
    ("resnet10t", SMALL),
])  # fmt: skip
def test_a_size_that_a_network_cannot_take_is_said_in_one_line(name, args, tmp_path):
    encoder = build_encoder(EncoderSettings(name=name, args=args, stem="native"), SIDE).eval()
    save_encoder(encoder, tmp_path)
    found = load(tmp_path)
    if name.startswith("vit"):
        text = refused(found, torch.zeros(1, 3, SIDE + 4, SIDE))
        assert f"{SIDE + 4}x{SIDE} pixels" in text and f"resize them to {SIDE}x{SIDE}" in text
    else:
        assert embedding(found, torch.zeros(1, 3, SIDE * 2, SIDE * 2)).shape == (1, 8)


def test_training_and_the_package_itself_pay_nothing(tmp_path, monkeypatch):
    """Values are looked at where people call a loaded encoder, and only there."""
    save_encoder(encoder_of(), tmp_path)
    looked = []
    plain = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda x, **k: looked.append(1) or plain(x, **k))
    x_BCHW = torch.rand(2, 3, SIDE, SIDE)
    found = load(tmp_path)
    found(x_BCHW)
    assert looked == [1]
    found.train()(x_BCHW * 3)
    artifacts.load(tmp_path, check_inputs=False)(x_BCHW * 3)
    encoder_of()(x_BCHW * 3)
    assert looked == [1]
    copy.deepcopy(found.eval())(x_BCHW)
    assert looked == [1, 1]


def test_a_loaded_encoder_can_be_exported_and_compiled(tmp_path):
    save_encoder(encoder_of(), tmp_path)
    found, x_BCHW = load(tmp_path), torch.rand(2, 3, SIDE, SIDE)
    expected_BD = embedding(found, x_BCHW)
    program = torch.export.export(Embedding(found), (x_BCHW,), strict=False)
    assert torch.allclose(program.module()(x_BCHW), expected_BD, atol=1e-5)
    half = copy.deepcopy(found).bfloat16()
    assert half(x_BCHW).embedding_BD.dtype == torch.bfloat16


def test_gradients_flow_through_a_checked_call(tmp_path):
    save_encoder(encoder_of(), tmp_path)
    x_BCHW = torch.rand(1, 3, SIDE, SIDE, requires_grad=True)
    load(tmp_path)(x_BCHW).embedding_BD.sum().backward()
    assert x_BCHW.grad.abs().sum() > 0


def test_a_bare_onnx_file_takes_uint8_too(tmp_path):
    save_for("onnxruntime", tmp_path)
    bare, x_BCHW = BareOnnx(tmp_path / "model.onnx"), bytes_BCHW()
    expected_BD = embedding(bare, x_BCHW.float() / 255)
    assert torch.equal(embedding(bare, x_BCHW), expected_BD)
    own = BareOnnx(tmp_path / "model.onnx", (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(embedding(own, x_BCHW), embedding(own, x_BCHW.float() / 255))
    assert "got torch.int32" in refused(bare, x_BCHW.int())


def test_modules_that_are_no_encoders_take_what_they_take(tmp_path):
    """Token ids are no images."""
    from ssdistill.artifacts.runtimes.onnx_runtime import OnnxRuntime
    from ssdistill.models.wrapped import Wrapped

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(9, 4)

        def forward(self, ids_BT):
            return self.table(ids_BT).mean(1)

    model = Wrapped(Tokens(), torch.tensor([[1, 2], [3, 4]]))
    OnnxRuntime().write(model, tmp_path / "model.onnx")
    save_encoder(OnnxRuntime.opens(tmp_path / "model.onnx", 4), tmp_path / "model")
    assert "spec" not in json.loads((tmp_path / "model" / "model.json").read_text())
    ids_BT = torch.tensor([[1, 2], [3, 8], [0, 0]])
    expected_BD = embedding(model, ids_BT)
    assert torch.allclose(embedding(load(tmp_path / "model"), ids_BT), expected_BD, atol=1e-6)


def test_the_functions_themselves():
    x_BCHW = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(as_images(x_BCHW, "it"), torch.ones(1, 3, 2, 2))
    check_images(torch.zeros(1, 3, 2, 2), "it")
    with pytest.raises(UserError, match="it takes images of shape"):
        check_images(torch.zeros(3, 2, 2), "it", look_at_values=False)


@pytest.mark.parametrize(
    ("place", "name"), [(torch.compiler, "is_compiling"), (torch.jit, "is_tracing")]
)
def test_values_are_not_looked_at_while_a_network_is_traced(place, name, monkeypatch, tmp_path):
    save_encoder(encoder_of(), tmp_path)
    found, x_BCHW = load(tmp_path), torch.rand(1, 3, SIDE, SIDE) * 5
    assert "divide by 255" in refused(found, x_BCHW)
    monkeypatch.setattr(place, name, lambda: True)
    assert embedding(found, x_BCHW).shape == (1, found.embed_dim)
