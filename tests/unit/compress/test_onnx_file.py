import onnx
import torch
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from ssdistill.artifacts.runtimes.onnx_runtime import OnnxRuntime
from ssdistill.compress.int8.onnx_file import prepare
from ssdistill.models.backbones import EncoderSettings, build_encoder


def test_shape_inference_that_gives_up_leaves_nothing_behind(tmp_path, monkeypatch):
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet10t", args={"channels": [8, 8, 8, 8]}, stem_stride=2)
    OnnxRuntime().write(build_encoder(settings, 16).eval(), tmp_path / "model.onnx")

    def give_up(model, *_, **__):
        onnx.save_model(model, "sym_shape_infer_temp.onnx")
        raise Exception("Incomplete symbolic shape inference")

    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", staticmethod(give_up))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare(tmp_path / "model.onnx", tmp_path / "prepared.onnx")
    assert (tmp_path / "prepared.onnx").stat().st_size > 0
    assert not list((tmp_path / "here").iterdir())
