import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder
from ssdistill.compress import Context
from ssdistill.compress.int8 import initializers as module
from ssdistill.compress.quantize import Quantize
from ssdistill.models.backbones import EncoderSettings, build_encoder


def random_images(count, seed):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An int8 file as written by the quantizer, and as rewritten; the encoder's width."""
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_width": 8}
    encoder = build_encoder(EncoderSettings(name="resnet10t", args=args), 16).eval()
    found = []
    for merge in (lambda path: 0, module.merge_equal_initializers):
        folder = tmp_path_factory.mktemp("int8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssdistill.compress.quantize.merge_equal_initializers", merge)
            step = Quantize(scheme="u8s8", calibration_images=16, check_images=16,
                            bias_correction=True)  # fmt: skip
            step.apply(encoder, Context(random_images, folder))
        found.append(folder / "model.onnx")
    return *found, encoder.embed_dim


def shapes_are_followed(file):
    try:
        onnx.checker.check_model(onnx.load(file), full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def test_a_slim_file_is_smaller_and_computes_the_same_bits(files):
    written, merged, width = files
    assert merged.stat().st_size < 0.9 * written.stat().st_size
    # onnx 1.17 cannot follow the shapes of every graph that torch writes.
    onnx.checker.check_model(onnx.load(merged), full_check=shapes_are_followed(written))
    outputs = [
        OnnxEncoder(path, width)(random_images(5, 1)).embedding_BD for path in (written, merged)
    ]
    assert torch.equal(*outputs)


def test_what_one_looks_for_keeps_its_name(files):
    written, merged, _ = (
        onnx.load(path).graph if not isinstance(path, int) else path for path in files
    )
    for part in ("input", "output"):
        assert [v.name for v in getattr(merged, part)] == [v.name for v in getattr(written, part)]
    names = [{t.name for t in g.initializer if len(t.dims) > 1} for g in (written, merged)]
    assert names[0] == names[1] and any("conv" in name for name in names[0])
    computing = [
        [n.name for n in g.node if n.op_type not in module.CODING] for g in (written, merged)
    ]
    assert computing[0] == computing[1]


def test_no_tensor_is_there_twice_and_slimming_again_saves_nothing(files, tmp_path):
    _, merged, _ = files
    tensors = [
        (t.data_type, tuple(t.dims), onnx.numpy_helper.to_array(t).tobytes())
        for t in onnx.load(merged).graph.initializer
    ]
    assert len(set(tensors)) == len(tensors)
    again = tmp_path / "again.onnx"
    again.write_bytes(merged.read_bytes())
    assert module.merge_equal_initializers(again) == 0


def test_short_names_do_not_meet_names_that_are_kept(tmp_path):
    """Values called t0 and t1 are there already: the input, and a weight."""
    two = helper.make_tensor("t1", TensorProto.FLOAT, [2, 1], [2.0, 3.0])
    counterpart = helper.make_tensor(
        "a_twin_of_another_name", TensorProto.FLOAT, [2, 1], [2.0, 3.0]
    )
    nodes = [
        helper.make_node("Mul", ["t0", "t1"], ["a_long_name_inside"], name="first"),
        helper.make_node("Add", ["a_long_name_inside", counterpart.name], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 1]) for n in ("t0", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [two, counterpart])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    assert module.merge_equal_initializers(path) > 0
    found = onnx.load(path).graph
    assert [list(n.input) for n in found.node] == [["t0", "t1"], ["t2", "t1"]]
    assert [list(n.output) for n in found.node] == [["t2"], ["y"]]
    assert [t.name for t in found.initializer] == ["t1"]
