"""Encoders of every origin: bare ONNX files, saved models, timm's names, networks, functions."""

import json

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from onnx import TensorProto, helper
from torch import nn

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.bare_onnx import BareOnnx
from ssdistill.evaluate.opening.encoders import (
    TensorEncoder,
    open_encoder,
    own_size,
    takes_statistics,
)
from ssdistill.models.representation import Representation
from ssdistill.teachers import ImageSpec

POOL = helper.make_node("GlobalAveragePool", ["x"], ["pooled"])
FLAT = helper.make_node("Flatten", ["pooled"], ["y"])
FLOAT = TensorProto.FLOAT


def written(path, shape, nodes=(POOL, FLAT), output=("y", ["b", 3]), kind=FLOAT, more=()):
    """A graph that averages each channel; ``more`` inputs are left unused."""
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    inputs += [helper.make_tensor_value_info(name, FLOAT, shape) for name in more]
    outputs = [helper.make_tensor_value_info(output[0], FLOAT, output[1])]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def images(count=6, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", ["b", 1, 4])
def test_a_bare_file_answers_whatever_batch_it_is_fixed_to(batch, tmp_path):
    path = written(tmp_path / "m.onnx", [batch, 3, "h", "w"], output=("y", [batch, 3]))
    encoder, x_BCHW = BareOnnx(path), images()
    assert (encoder.size, encoder.embed_dim) == (None, 3)
    found = encoder(x_BCHW)
    assert torch.allclose(found.embedding_BD, x_BCHW.mean((2, 3)), atol=1e-6)


def test_mean_and_std_are_applied_before_the_file(tmp_path):
    path = written(tmp_path / "m.onnx", ["b", 3, 8, 8])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    x_BCHW = images()
    opened = open_encoder(path, mean=mean, std=std)
    expected = (x_BCHW.mean((2, 3)) - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(opened.encoder(x_BCHW).embedding_BD, expected, atol=1e-5)
    assert opened.notices == () and opened.image_size == 8 and opened.bytes == path.stat().st_size
    (notice,) = open_encoder(path).notices
    assert "normalizes" in notice


def test_a_file_that_takes_bytes_is_given_bytes(tmp_path):
    cast = helper.make_node("Cast", ["x"], ["f"], to=FLOAT)
    pool = helper.make_node("GlobalAveragePool", ["f"], ["pooled"])
    nodes, kind = (cast, pool, FLAT), TensorProto.UINT8
    path = written(tmp_path / "m.onnx", ["b", 3, "h", "w"], nodes, kind=kind)
    x_BCHW = images()
    expected = x_BCHW.mul(255).round().mean((2, 3))
    assert torch.allclose(BareOnnx(path)(x_BCHW).embedding_BD, expected, atol=1e-3)
    with pytest.raises(UserError, match="uint8 images: omit mean and std"):
        BareOnnx(path, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    "shape, facts, words",
    [
        (
            ["b", 3, 8, 8],
            {"nodes": (POOL,), "output": ("pooled", ["b", 3, 1, 1])},
            "returns (B, D)",
        ),
        (["b", 8, 8, 3], {}, "takes (b, 8, 8, 3); an encoder takes images (B, C, H, W)"),
        (["b", 3, 8, 8], {"more": ("mask",)}, "has 2 inputs (x, mask)"),
        (["b", 3, 8, 8], {"kind": TensorProto.DOUBLE}, "takes tensor(double)"),
    ],
)
def test_a_file_that_is_no_encoder_is_refused_by_what_it_takes_or_gives(
    shape, facts, words, tmp_path
):
    output = facts.get("output", ("y", ["b", shape[1]]))
    if facts.get("kind") == TensorProto.DOUBLE:
        cast = helper.make_node("Cast", ["x"], ["f"], to=FLOAT)
        pool = helper.make_node("GlobalAveragePool", ["f"], ["pooled"])
        facts = facts | {"nodes": (cast, pool, FLAT)}
    path = written(tmp_path / "m.onnx", shape, **{**facts, "output": output})
    with pytest.raises(UserError) as error:
        open_encoder(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_fixed_size_is_kept_and_another_wish_is_said(tmp_path):
    path = written(tmp_path / "m.onnx", ["b", 3, 24, 24])
    assert own_size(path) == 24
    opened = open_encoder(path, image_size=32)
    assert opened.image_size == 24
    assert any(
        "24 pixels only" in notice and "image_size=32" in notice for notice in opened.notices
    )


def test_a_file_beside_a_description_is_the_artifact_only_where_it_is_named(tmp_path):
    fields = {"format": 1, "weights": "model.onnx", "sha256": "0" * 64, "embed_dim": 3}
    fields["spec"] = {"name": "resnet18", "image_size": 20}
    (tmp_path / "model.json").write_text(json.dumps(fields))
    named = written(tmp_path / "model.onnx", ["b", 3, 24, 24])
    other = written(tmp_path / "other.onnx", ["b", 3, 24, 24])
    assert (own_size(named), own_size(other)) == (20, 24)
    assert (takes_statistics(named), takes_statistics(other)) == (False, True)


@torch.no_grad()
def test_a_saved_model_is_opened_by_its_folder_or_the_one_around_it(make_encoder, tmp_path):
    encoder = make_encoder(0).eval()
    save_encoder(encoder, tmp_path / "s0" / "model")
    x_BCHW = images(2, 16)
    for path in (tmp_path / "s0", str(tmp_path / "s0" / "model")):
        opened = open_encoder(path)
        assert torch.equal(opened.encoder(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
        assert opened.image_size == own_size(path) == 16
    assert opened.parameters == sum(p.numel() for p in encoder.net.parameters())
    assert opened.bytes == (tmp_path / "s0/model/model.safetensors").stat().st_size
    larger = open_encoder(tmp_path, image_size=24)
    assert larger.image_size == larger.encoder.spec.image_size == 24
    assert any("trained on images of 16 pixels" in notice for notice in larger.notices)


@torch.no_grad()
def test_timms_network_is_opened_by_name_and_file_with_its_own_statistics(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("test_resnet.r160_in1k").eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    name = f"timm:test_resnet.r160_in1k@{path}"
    assert own_size(name) == 160
    opened = open_encoder(name, ImageSpec(32, (0.1,) * 3, (0.2,) * 3))
    assert (opened.image_size, opened.bytes) == (160, path.stat().st_size)
    x_BCHW, config = images(2, 160), net.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    expected = net.forward_head(net.forward_features((x_BCHW - mean) / std), pre_logits=True)
    assert torch.allclose(opened.encoder(x_BCHW).embedding_BD, expected, atol=1e-4)


@pytest.mark.parametrize(
    "what, words",
    [
        ("timm:resnet188", "timm:resnet188: timm has no model 'resnet188' (did you mean"),
        ("timm:resnet18@/no/file.pth", "18@/no/file.pth: no such file or folder; check"),
        ("checkpoint:resnet18", "write checkpoint:resnet18@FILE"),
        ("timn:resnet18", "timn:resnet18: no such file or folder (did you mean 'timm'?); check"),
        ("resnet18", "no such file or folder; for the network of timm write timm:resnet18"),
        ("nowhere", "nowhere: no such file or folder; check the path"),
    ],
)
def test_what_names_nothing_is_refused_before_anything_is_loaded(what, words):
    for open_it in (open_encoder, own_size):
        with pytest.raises(UserError) as error:
            open_it(what)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a saved model"):
        open_encoder(tmp_path)


def test_networks_and_functions_become_encoders(make_encoder):
    x_BCHW = images()
    encoder = make_encoder(0)
    assert open_encoder(encoder).encoder is encoder and open_encoder(encoder).image_size == 16
    flat = open_encoder(nn.Flatten())
    assert isinstance(flat.encoder, TensorEncoder) and flat.image_size is None
    both = (flat.encoder, open_encoder(lambda x: Representation(x.flatten(1))).encoder)
    for one in both:
        assert torch.equal(one(x_BCHW).embedding_BD, x_BCHW.flatten(1))
    linear = open_encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    assert (linear.parameters, linear.bytes) == (15, 60)
    assert (flat.bytes, open_encoder(lambda x: x).parameters) == (0, None)


@pytest.mark.parametrize(
    "what, words",
    [
        (lambda x: x, r"returns \(6, 3, 8, 8\); an encoder returns embeddings"),
        (nn.Identity(), r"Identity returns \(6, 3, 8, 8\)"),
        (lambda x: x.numpy(), "returns ndarray"),
        (3, "got 3"),
    ],
)
def test_what_answers_with_something_else_is_refused(what, words):
    with pytest.raises(UserError, match=words):
        open_encoder(what).encoder(images())


def test_mean_and_std_belong_together_and_to_those_that_need_them(make_encoder, tmp_path):
    save_encoder(make_encoder(0), tmp_path)
    with pytest.raises(UserError, match="mean was passed without std: pass both or neither"):
        open_encoder(tmp_path, mean=(0, 0, 0))
    with pytest.raises(UserError, match="normalizes images itself"):
        open_encoder(tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    assert np.array_equal([takes_statistics(w) for w in (tmp_path, nn.Flatten())], [False, False])
