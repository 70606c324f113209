"""Hostile ONNX, OpenVINO and ExecuTorch files: other files, wrong sizes, other formats."""

import json
import os
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.artifacts.files import write_artifact
from ssdistill.artifacts.runtimes.onnx_parts import check_onnx
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.bare_onnx import BareOnnx
from ssdistill.settings.registry import RUNTIMES

POOL = helper.make_node("GlobalAveragePool", ["x"], ["pooled"])
FLAT = helper.make_node("Flatten", ["pooled"], ["flat"])
SCALE = helper.make_node("Mul", ["flat", "scale"], ["y"])
NUMBERS = np.array([1, 2, 3], np.float32)


def external(location, offset=None, length=None):
    """A tensor that says it lies in another file."""
    tensor = numpy_helper.from_array(NUMBERS, "scale")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph(path, initializers=(), nodes=(POOL, FLAT, SCALE), **more):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3])
    made = helper.make_graph(list(nodes), "g", [x], [y], list(initializers))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9, **more)
    path.write_bytes(model.SerializeToString())
    return path


def refused(opened, *args):
    with pytest.raises(UserError) as caught:
        opened(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_beside_the_model_are_read(tmp_path):
    (tmp_path / "w.bin").write_bytes(NUMBERS.tobytes())
    x_BCHW = torch.rand(2, 3, 8, 8)
    found = BareOnnx(graph(tmp_path / "m.onnx", [external("w.bin")]))(x_BCHW).embedding_BD
    assert torch.allclose(found, x_BCHW.mean((2, 3)) * torch.tensor(NUMBERS), atol=1e-6)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "{absolute}", "link.bin", "folder/secret.bin", "",
     ".", "..", "gone.bin", "loop.bin", "/dev/zero", "a\0b", "x" * 5000],
)  # fmt: skip
def test_tensors_outside_of_the_folder_are_not(location, tmp_path):
    (tmp_path / "secret.bin").write_bytes(NUMBERS.tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "loop.bin").symlink_to("loop.bin")
    (folder / "folder").symlink_to("..")
    location = location.replace("{absolute}", str(tmp_path / "secret.bin"))
    path = graph(folder / "model.onnx", [external(location)])
    text = refused(BareOnnx, path)
    assert "scale" in text and ("folder" in text or "no such file" in text)
    write_artifact(folder, {"model.onnx": path.read_bytes()}, None,
                   {"embed_dim": 3, "runtime": "onnxruntime"})  # fmt: skip
    assert "scale" in refused(load, folder)


@pytest.mark.parametrize("offset, length", [(0, 13), (8, 8), (-1, 4), (10**15, 4), (0, 10**15),
                                            ("x", 4), (0, -1), (None, 10**30)])  # fmt: skip
def test_places_beyond_the_end_are_refused(offset, length, tmp_path):
    (tmp_path / "w.bin").write_bytes(NUMBERS.tobytes())
    path = graph(tmp_path / "m.onnx", [external("w.bin", offset, length)])
    assert "w.bin" in refused(BareOnnx, path)


def inside(place):
    """A model whose only outside tensor is in a part that is easily forgotten."""
    tensor = external("../secret.bin")
    constant = helper.make_node("Constant", [], ["scale"], value=tensor)
    if place == "constant":
        return {"nodes": (constant, POOL, FLAT, SCALE)}
    if place == "list":
        node = helper.make_node("Mine", ["flat"], ["y"], domain="com.microsoft")
        node.attribute.append(helper.make_attribute("parts", [tensor]))
        return {"nodes": (POOL, FLAT, node)}
    if place == "sparse":
        sparse = onnx.SparseTensorProto(values=tensor, dims=[3])
        sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(3), "i"))
        node = helper.make_node("Constant", [], ["scale"])
        node.attribute.append(helper.make_attribute("sparse_value", sparse))
        return {"nodes": (node, POOL, FLAT, SCALE)}
    if place == "function":
        opset = [helper.make_opsetid("", 17)]
        made = helper.make_function("mine", "F", ["flat"], ["y"], [constant, SCALE], opset)
        call = helper.make_node("F", ["flat"], ["y"], domain="mine")
        return {"nodes": (POOL, FLAT, call), "functions": [made]}
    branch = helper.make_graph(
        [helper.make_node("Identity", ["deep"], ["z"])], "branch", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])],
        [external("../secret.bin")],
    )  # fmt: skip
    node = helper.make_node("If", ["flat"], ["scale"], then_branch=branch, else_branch=branch)
    return {"nodes": (POOL, FLAT, node, SCALE)}


@pytest.mark.parametrize("place", ["constant", "list", "sparse", "function", "branch"])
def test_every_part_of_a_model_is_looked_at(place, tmp_path):
    (tmp_path / "secret.bin").write_bytes(NUMBERS.tobytes())
    (tmp_path / "model").mkdir()
    path = graph(tmp_path / "model" / "m.onnx", **inside(place))
    assert "outside its folder" in refused(check_onnx, path)


def test_operators_that_are_compiled_code_are_refused(tmp_path):
    node = helper.make_node("EPContext", ["flat"], ["y"], name="ctx", domain="com.microsoft",
                            ep_cache_context="../evil.so", embed_mode=0)  # fmt: skip
    path = graph(tmp_path / "m.onnx", nodes=(POOL, FLAT, node))
    assert "EPContext 'ctx' is compiled code" in refused(BareOnnx, path)


def test_operators_of_other_libraries_are_unknown(tmp_path):
    node = helper.make_node("Mine", ["flat"], ["y"], domain="evil")
    path = graph(tmp_path / "m.onnx", nodes=(POOL, FLAT, node))
    assert "ONNX Runtime cannot open" in refused(BareOnnx, path)


@pytest.mark.parametrize("dims", [[10**12], [2**62, 4], [-1], [2**31, 2**31]])
def test_a_tensor_that_claims_more_numbers_than_it_has_is_refused(dims, tmp_path):
    tensor = numpy_helper.from_array(NUMBERS, "scale")
    tensor.dims[:] = dims
    refused(BareOnnx, graph(tmp_path / "m.onnx", [tensor]))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 64, b"PK\x03\x04", b"\xff" * 999, b"<net/>", b"{}"]
)
def test_what_is_no_onnx_model_is_refused(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    assert "m.onnx" in refused(BareOnnx, tmp_path / "m.onnx")
    assert "m.onnx" in refused(OnnxEncoder, tmp_path / "m.onnx", 3)


QUICK = [kind for kind in sorted(RUNTIMES.classes) if not RUNTIMES[kind].compiles]


@pytest.fixture(scope="module", params=QUICK)
def saved(request, tmp_path_factory):
    """A saved model for each runtime, its folder and files."""
    from ssdistill.models.backbones import EncoderSettings, build_encoder

    kind = RUNTIMES[request.param]
    try:
        kind.require()
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
    settings = EncoderSettings(name="resnet10t", args=args, stem_stride=2)
    encoder = build_encoder(settings, 16).eval()
    folder = tmp_path_factory.mktemp(request.param)
    kind().write(encoder, folder / kind.file)
    save_encoder(kind.opens(folder / kind.file, 8, encoder.spec), folder / "model")
    names = getattr(kind, "files", (kind.file,))
    return folder / "model", {name: (folder / "model" / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "how", ["gone", "empty", "half", "start", "folder", "loop", "zeros", "text", "zip"]
)
@pytest.mark.parametrize("agreed", [True, False])
def test_every_file_of_every_runtime_may_be_damaged(saved, how, agreed, tmp_path):
    """Whether or not the description knows of it."""
    folder, files = saved
    for name, content in files.items():
        contents = dict(files)
        contents[name] = {
            "half": content[: len(content) // 2], "start": content[:40], "text": b"hello" * 99,
            "zeros": bytes(len(content)), "zip": b"PK\x05\x06" + bytes(18),
        }.get(how, b"")  # fmt: skip
        target = tmp_path / f"{name}-{how}"
        facts = json.loads((folder / "model.json").read_text())
        kept = {k: facts[k] for k in ("embed_dim", "runtime", "spec")}
        write_artifact(target, contents if agreed else files, None, kept)
        if how in ("gone", "folder", "loop"):
            (target / name).unlink()
        else:
            (target / name).write_bytes(contents[name])
        if how == "folder":
            (target / name).mkdir()
        elif how == "loop":
            (target / name).symlink_to(name)
        if (how, name, agreed) == ("zeros", "model.bin", True):
            continue  # zeros are weights like others, to OpenVINO 2025.4 even as shapes
        assert name.partition(".")[0] in refused(load, target)


def test_files_of_other_runtimes_under_this_ones_name_are_refused(saved, tmp_path):
    folder, files = saved
    kind = json.loads((folder / "model.json").read_text())["runtime"]
    for other in QUICK:
        if other == kind:
            continue
        names = getattr(RUNTIMES[other], "files", (RUNTIMES[other].file,))
        contents = dict.fromkeys(names, next(iter(files.values())))
        facts = {"embed_dim": 8, "runtime": other}
        write_artifact(tmp_path / other, contents, None, facts)
        refused(load, tmp_path / other)


openvino_only = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("openvino"), reason="needs OpenVINO"
)


@openvino_only
@pytest.mark.parametrize("change", [
    lambda xml: xml.replace("<net ", '<!DOCTYPE net [<!ENTITY a "b">]><net ', 1),
    lambda xml: xml.replace('<?xml version="1.0"?>', '<?xml version="1.0"?><!-- x -->'),
    lambda xml: re.sub(r'offset="\d+"', 'offset="1000000000000"', xml),
    lambda xml: re.sub(r'(<data [^>]*)size="\d+"', r'\1size="1000000000000"', xml),
    lambda xml: xml.replace('shape="8, 3, 3, 3"', 'shape="1000000000000, 3, 3, 3"'),
    lambda xml: xml.replace('version="opset1"', 'version="extension"'),
    lambda xml: xml.replace('type="Convolution"', 'type="Evil"'),
    lambda xml: xml[: len(xml) // 2],
    lambda xml: "<net>" * 20_000,
])  # fmt: skip
def test_an_openvino_network_is_xml_with_constants_in_its_own_file(change, tmp_path):
    from ssdistill.artifacts.runtimes.openvino import OpenVino, OpenVinoModel

    x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1),
                            torch.nn.Flatten())  # fmt: skip
    from ssdistill.models.wrapped import Wrapped

    path = tmp_path / "model.xml"
    OpenVino().write(Wrapped(x.eval(), torch.rand(2, 3, 8, 8)), path)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    refused(OpenVinoModel, path, 8)


@openvino_only
def test_constants_behind_a_link_to_a_device_are_refused(saved, tmp_path):
    from ssdistill.artifacts.runtimes.openvino import OpenVinoModel

    _, files = saved
    if "model.xml" not in files:
        pytest.skip("of OpenVINO alone")
    (tmp_path / "model.xml").write_bytes(files["model.xml"])
    os.symlink("/dev/zero", tmp_path / "model.bin")
    assert "no such file" in refused(OpenVinoModel, tmp_path / "model.xml", 8)


@pytest.mark.parametrize(
    ("said", "reason"), [("\n\n  wire type 7\nat byte 3", "wire type 7"), (" \n", "KeyError")]
)
def test_why_a_file_is_no_onnx_model_is_told_on_one_line(said, reason, tmp_path, monkeypatch):
    class Unreadable(KeyError):
        def __str__(self):
            return said

    Unreadable.__name__ = "KeyError"

    def fails(content):
        raise Unreadable

    monkeypatch.setattr(onnx, "load_model_from_string", fails)
    (tmp_path / "m.onnx").write_bytes(b"x")
    assert f"not an ONNX model ({reason}); " in refused(check_onnx, tmp_path / "m.onnx")
