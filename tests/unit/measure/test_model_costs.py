from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.model_costs import costs_of
from ssdistill.measure.parameters import count_parameters, gzip_bytes


@pytest.fixture
def saved(make_encoder, tmp_path):
    encoder = make_encoder().eval()
    with torch.no_grad():
        next(encoder.net.parameters())[:] = 0
    save_encoder(encoder, tmp_path)
    return encoder, tmp_path


def test_costs_of_a_network_are_counted_in_it_and_in_its_file(saved):
    encoder, folder = saved
    found = costs_of(encoder, folder)
    assert found == {
        "compress/params": count_parameters(encoder),
        "compress/params_nonzero": count_parameters(encoder, nonzero=True),
        "compress/macs": count_macs(encoder),
        "compress/bytes": (folder / "model.safetensors").stat().st_size,
        "compress/bytes_gzip": gzip_bytes(folder),
    }
    zeros = next(encoder.net.parameters()).numel()
    assert found["compress/params"] - found["compress/params_nonzero"] >= zeros


@pytest.fixture
def file(tmp_path):
    """A product with a 6x4 matrix, a quarter of it zero, as an ONNX file."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    weight = np.arange(24, dtype=np.float32).reshape(6, 4) % 4
    nodes = [helper.make_node("MatMul", ["inputs", "weight"], ["embedding"])]
    shapes = {"inputs": ["batch", 6], "embedding": ["batch", 4]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return OnnxEncoder(folder / "model.onnx", 4)


def test_an_onnx_file_tells_its_parameters_and_its_parent_the_macs(saved, file):
    encoder, _ = saved
    folder = file.path.parent
    found = costs_of(file, folder, encoder)
    assert (found["compress/params"], found["compress/params_nonzero"]) == (24, 18)
    assert found["compress/macs"] == count_macs(encoder)
    assert found["compress/bytes"] == file.path.stat().st_size
    assert "compress/macs" not in costs_of(file, folder)


def test_quantized_weights_are_parameters_and_their_scales_are_none(tmp_path):
    weight = np.arange(24, dtype=np.int8).reshape(6, 4) % 4
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["float"]),
        helper.make_node("MatMul", ["inputs", "float"], ["embedding"]),
    ]
    shapes = {"inputs": ["batch", 6], "embedding": ["batch", 4]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    scale, zero = np.full(1, 0.5, np.float32), np.zeros(1, np.int8)
    stored = {"weight": weight, "scale": scale, "zero": zero}
    tensors = [from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    file = SimpleNamespace(path=tmp_path / "model.onnx")
    assert (count_parameters(file), count_parameters(file, nonzero=True)) == (24, 18)


def test_of_another_runtimes_file_the_parent_tells_everything_but_the_bytes(saved):
    encoder, folder = saved
    file = SimpleNamespace(path=Path("model.bin"))
    with pytest.raises(UserError, match=r"model\.bin: count those of its PyTorch parent"):
        count_parameters(file)
    found = costs_of(file, folder, encoder)
    assert found == costs_of(encoder, folder)
    assert set(costs_of(file, folder)) == {"compress/bytes", "compress/bytes_gzip"}
