"""Artifacts of encoders for other channels, and for images that are no squares."""

import json

import numpy as np
import pytest
import torch

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder, export_onnx
from ssdistill.compress.export import Uint8Encoder
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.bare_onnx import BareOnnx
from ssdistill.evaluate.opening.encoders import open_encoder, own_size
from ssdistill.measure.latency import example
from ssdistill.measure.macs import count_macs
from ssdistill.measure.precision import precision_key
from ssdistill.models.backbones import build_encoder
from ssdistill.models.spec import EncoderSettings
from ssdistill.teachers import ImageSpec

MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.2, 0.2, 0.2, 0.25)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet18", args={"channels": [4, 4, 8, 8]}, stem="native")
    return build_encoder(settings, (32, 16), MEAN, STD).eval()


@pytest.fixture(scope="module")
def onnx_file(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "bare.onnx"
    export_onnx(encoder, path)
    return path


@torch.no_grad()
def test_an_encoder_comes_back_with_its_channels_and_its_size(encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    again = load(tmp_path)
    assert again.spec == encoder.spec and again.spec.image_size == (32, 16)
    x_BCHW = encoder.example(2)
    assert torch.equal(again(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["input"].startswith("float32 images (B, 5, 32, 16) in [0, 1]")
    assert facts["timm"]["in_chans"] == 5


def test_what_is_said_of_color_squares_is_what_it_was(tmp_path):
    args = {"channels": [4, 4, 8, 8]}
    save_encoder(build_encoder(EncoderSettings(name="resnet18", args=args), 96), tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["input"] == (
        "float32 images (B, 3, image_size, image_size) in [0, 1]; normalization is built in"
    )
    assert facts["timm"] == {"model_name": "resnet18", "num_classes": 0, **args}


@pytest.mark.parametrize(("key", "value", "words"), [
    ("std", [0.5], "5 means go with as many deviations"), ("mean", [], "spec.mean"),
    ("image_size", [32, 0], "spec.image_size"), ("image_size", [32], "spec.image_size"),
])  # fmt: skip
def test_a_spec_that_fits_no_images_is_refused(encoder, tmp_path, key, value, words):
    save_encoder(encoder, tmp_path)
    path = tmp_path / "model.json"
    facts = json.loads(path.read_text())
    facts["spec"][key] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_costs_are_those_of_the_images_it_takes(encoder):
    assert count_macs(encoder) == count_macs(encoder, (32, 16)) < count_macs(encoder, (32, 32))
    assert example([encoder], 3).shape == (3, 5, 32, 16)
    key = precision_key(encoder.spec, 8, encoder.spec.image_size)
    assert (key["channels"], key["image_size"]) == (5, (32, 16))
    color = build_encoder(EncoderSettings(name="resnet18", args={"channels": [4, 4, 8, 8]}), 32)
    assert "channels" not in precision_key(color.spec, 8, 32)


@torch.no_grad()
def test_images_are_brought_to_height_and_width_in_the_file(encoder):
    resizing = Uint8Encoder(encoder, (48, 20))
    x_BCHW = resizing.example(2)
    assert x_BCHW.shape == (2, 5, 48, 20)
    resized = torch.nn.functional.interpolate(
        x_BCHW.float() / 255, (32, 16), mode="bicubic", antialias=True
    ).clamp(0, 1)
    expected_BD = encoder(resized).embedding_BD
    assert torch.allclose(resizing(x_BCHW).embedding_BD, expected_BD, atol=1e-5)


def test_a_file_says_which_images_it_takes(encoder, onnx_file):
    written = OnnxEncoder(onnx_file, encoder.embed_dim, encoder.spec)
    written.checks_inputs = True
    with pytest.raises(UserError, match=r"of shape \(B, 5, H, W\), got \(1, 3, 32, 16\)"):
        written(torch.zeros(1, 3, 32, 16))
    bare = BareOnnx(onnx_file, [0.0] * 5, [1.0] * 5)
    assert bare.size == own_size(onnx_file) == (32, 16)
    x_BCHW = encoder.example(2)
    assert torch.equal(bare(x_BCHW).embedding_BD, written(x_BCHW).embedding_BD)
    with pytest.raises(UserError, match="takes 5 channels, but mean has 3 numbers"):
        BareOnnx(onnx_file, [0.0] * 3, [1.0] * 3)


def test_an_encoder_of_other_channels_than_the_data_is_refused(encoder, onnx_file, tmp_path):
    save_encoder(encoder, tmp_path)
    color = ImageSpec(32, (0.5,) * 3, (0.2,) * 3)
    for what in (tmp_path, onnx_file, encoder):
        with pytest.raises(UserError, match="takes images of 5 channels, but the data has 3"):
            open_encoder(what, color)
    fitting = ImageSpec((32, 16), MEAN, STD)
    assert open_encoder(tmp_path, fitting).image_size == (32, 16)
    opened = open_encoder(onnx_file, fitting, image_size=(16, 32))
    assert opened.image_size == (32, 16)
    assert "takes images of 32x16 pixels only; ignoring image_size=[16,32]" in opened.notices
    assert np.isfinite(opened.bytes)
