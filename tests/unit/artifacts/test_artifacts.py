import copy
import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ssdistill.artifacts.artifact import (
    load,
    load_encoder,
    load_weights,
    save_encoder,
    save_weights,
)
from ssdistill.artifacts.files import FORMAT, sha256_of, weight_files, write_artifact
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder, export_onnx
from ssdistill.compress import Context
from ssdistill.compress.prune import Prune
from ssdistill.compress.share import Share
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.factorized import Factorized
from ssdistill.models.structure import fit_structure
from ssdistill.models.wrapped import Wrapped

SMALL = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}


def encoder_of(stem="small", name="resnet10t", args=SMALL):
    torch.manual_seed(0)
    settings = EncoderSettings(name=name, args=args, stem=stem, stem_stride=2)
    encoder = build_encoder(settings, 32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    encoder.train()(torch.rand(8, 3, 32, 32))
    return encoder.eval()


def pruned_of(encoder, **settings):
    return Prune(**settings).apply(encoder, Context(lambda n, seed: torch.zeros(0), Path()))


@torch.no_grad()
def same(one, other):
    x_BCHW = torch.rand(3, 3, 32, 32)
    return torch.equal(one(x_BCHW).embedding_BD, other(x_BCHW).embedding_BD)


def test_saved_and_loaded_encoders_agree_exactly(tmp_path):
    encoder = encoder_of()
    sha256 = save_encoder(encoder, tmp_path, {"teacher": "a"})
    found = load(tmp_path)
    assert not found.training and same(encoder, found)
    assert found.spec.model_dump(mode="json") == encoder.spec.model_dump(mode="json")
    description = json.loads((tmp_path / "model.json").read_text())
    assert description["sha256"] == sha256 and description["lineage"] == {"teacher": "a"}
    assert description["widths"] == {} and description["timm"] is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("name", "args", "scope"),
    [
        ("resnet10t", SMALL, "inner"),
        ("resnet10t", SMALL, "all"),
        ("mobilenetv3_small_050", {}, "all"),
    ],
)
def test_pruned_widths_come_back_exactly(tmp_path, scope, name, args):
    pruned = pruned_of(encoder_of(name=name, args=args), ratio=0.5, scope=scope)
    save_encoder(pruned, tmp_path)
    found = load(tmp_path)
    assert same(pruned, found)
    assert {n: p.shape for n, p in pruned.named_parameters()} == {
        n: p.shape for n, p in found.named_parameters()
    }
    assert "pruned" in json.loads((tmp_path / "model.json").read_text())["timm_note"]


@torch.no_grad()
def test_a_plain_student_opens_with_timm_alone(tmp_path):
    encoder = encoder_of(stem="native")
    save_encoder(encoder, tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    path = str(tmp_path / description["weights"])
    net = timm.create_model(**description["timm"], checkpoint_path=path).eval()
    spec = description["spec"]
    x_BCHW = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(spec[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    assert torch.equal(net((x_BCHW - mean) / std), encoder(x_BCHW).embedding_BD)


def test_the_memory_format_does_not_reach_the_file(tmp_path):
    encoder = encoder_of()
    plain = save_encoder(encoder, tmp_path)
    assert save_encoder(encoder.to(memory_format=torch.channels_last), tmp_path) == plain


def test_load_finds_the_artifact_below_a_stage_folder(tmp_path):
    save_encoder(encoder_of(), tmp_path / "stage" / "model")
    assert load(tmp_path / "stage").embed_dim == 64
    assert load(tmp_path / "stage" / "model" / "model.safetensors").embed_dim == 64
    save_encoder(encoder_of(), tmp_path / "stage" / "other")
    with pytest.raises(UserError, match="several models: specify one of model, other"):
        load(tmp_path / "stage")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save_encoder(encoder_of(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no {name}"):
        load_encoder(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    save_encoder(encoder_of(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is corrupt"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"args": SMALL | {"channels": (16, 48, 64, 64)}}, "'layer2.0.conv1.weight' has shape"),
        ({"args": SMALL | {"layers": (1, 2, 1, 0)}}, "lacks 'layer2.1.conv1.weight'"),
        ({"args": SMALL | {"layers": (1, 1, 0, 0)}}, "unknown 'layer3.0."),
        ({"name": "resnet10tt"}, "timm has no model"),
        ({"mean": 3}, "spec"),
    ],
)
def test_a_checkpoint_of_another_architecture_names_the_first_offender(tmp_path, change, words):
    save_encoder(encoder_of(), tmp_path)
    path = tmp_path / "model.json"
    description = json.loads(path.read_text())
    description["spec"] |= change
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "sha256": ""}'])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    save_encoder(encoder_of(), tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (FORMAT + 1, rf"model\.json has format {FORMAT + 1}, but this version reads"),
        (0, r"model\.json has format 0, but this version reads"),
        (str(FORMAT), "the format in .* is invalid .format: expected a whole number"),
        (None, "the format in .* is invalid .format: expected a whole number"),
    ],
)
def test_a_description_of_another_format_is_refused_by_its_format(tmp_path, version, message):
    save_encoder(encoder_of(), tmp_path)
    path = tmp_path / "model.json"
    description = json.loads(path.read_text()) | {"format": version}
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_blocks_that_are_gone_are_nothing_that_timm_opens(tmp_path):
    encoder = encoder_of()
    encoder.removed = ("layer2.0",)
    from ssdistill.artifacts.usage_notes import timm_facts

    found = timm_facts(encoder, {"widths": {}, "removed": ["layer2.0"]}, "model.safetensors")
    assert found["timm"] is None and "missing blocks" in found["timm_note"]
    whole = timm_facts(encoder, {"widths": {}}, "model.safetensors")
    assert "missing blocks" not in (whole["timm_note"] or "")


def test_a_full_disk_leaves_the_old_artifact_and_no_rubbish(tmp_path, monkeypatch):
    encoder = encoder_of()
    save_encoder(encoder, tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        save_encoder(encoder_of(stem="native"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert same(load(tmp_path), encoder)


def test_fitting_refuses_what_no_width_explains():
    net, other = (encoder_of().net for _ in range(2))
    state = other.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(16, 16, 5, 5)
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight"):
        fit_structure(net, state)


def encoder_with_projector():
    encoder = encoder_of()
    encoder.projector = nn.Sequential(nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16)).eval()
    return encoder


def test_the_projector_has_its_own_file_and_description(tmp_path):
    encoder = encoder_with_projector()
    plain = save_encoder(encoder_of(), tmp_path / "plain")
    assert save_encoder(encoder, tmp_path / "kept") == plain
    names = ["model.json", "model.safetensors", "projector.safetensors"]
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == names
    description = json.loads((tmp_path / "kept" / "model.json").read_text())
    content = (tmp_path / "kept" / "projector.safetensors").read_bytes()
    assert description["projector"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert description["projector"]["layers"] == [
        {"kind": "linear", "in_dim": 64, "out_dim": 16, "bias": False},
        {"kind": "batch_norm", "width": 16, "affine": True, "eps": 1e-5},
    ]


def test_an_encoder_without_projector_replaces_one_with(tmp_path):
    save_encoder(encoder_with_projector(), tmp_path)
    save_encoder(encoder_of(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert "projector" not in json.loads((tmp_path / "model.json").read_text())
    assert load(tmp_path).projector is None


def test_a_missing_projector_is_named(tmp_path):
    save_encoder(encoder_with_projector(), tmp_path)
    (tmp_path / "projector.safetensors").unlink()
    with pytest.raises(UserError, match=r"no projector\.safetensors"):
        load(tmp_path)


def test_a_damaged_projector_is_refused(tmp_path):
    save_encoder(encoder_with_projector(), tmp_path)
    path = tmp_path / "projector.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"projector\.safetensors is corrupt"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [{"kind": "linear", "in_dim": 64, "out_dim": 8, "bias": False}]}, "shape"),
        ({"layers": [{"kind": "linear", "in_dim": 64, "out_dim": 16, "bias": True}]}, "'0.bias'"),
        ({"layers": [{"kind": "linear", "in_dim": 64, "out_dim": 16, "bias": False}]}, "unknown"),
        (
            {"layers": [{"kind": "linear", "in_dim": 32, "out_dim": 16, "bias": False}]},
            "incompatible widths",
        ),
        ({"layers": [{"kind": "call", "name": "os.system"}]}, r"model\.json is invalid"),
        ({"layers": []}, r"model\.json is invalid"),
        ({"layers": None}, r"model\.json is invalid"),
    ],
)
def test_a_projector_that_is_not_its_descriptions_is_refused(tmp_path, change, words):
    save_encoder(encoder_with_projector(), tmp_path)
    path = tmp_path / "model.json"
    description = json.loads(path.read_text())
    description["projector"] |= change
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("entry", [[], "head", 3, {"layers": []}, {}])
def test_a_foreign_projector_entry_is_refused(tmp_path, entry):
    save_encoder(encoder_of(), tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"projector": entry}))
    with pytest.raises(UserError, match=r"projector in .*model\.json is invalid"):
        load(tmp_path)


def test_a_file_that_is_no_projector_is_refused(tmp_path):
    save_encoder(encoder_with_projector(), tmp_path)
    content = b"not safetensors"
    (tmp_path / "projector.safetensors").write_bytes(content)
    path = tmp_path / "model.json"
    description = json.loads(path.read_text())
    description["projector"]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"projector\.safetensors .* not a safetensors file"):
        load(tmp_path)


def test_pruning_keeps_working_beside_a_projector(tmp_path):
    encoder = encoder_with_projector()
    pruned = pruned_of(encoder, ratio=0.5)
    save_encoder(pruned, tmp_path)
    found = load(tmp_path)
    assert same(pruned, found)
    assert not same(found, encoder)


def test_blocks_factors_channels_and_codes_come_back_exactly(tmp_path):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
    encoder = encoder_of("native", "vit_tiny_patch16_224", args)
    encoder.net.blocks[1] = nn.Identity()
    layer = encoder.net.blocks[0].mlp.fc1
    encoder.net.blocks[0].mlp.fc1 = Factorized.like(layer, 16, "channel")
    for parameter in encoder.net.blocks[0].mlp.fc1.parameters():
        nn.init.normal_(parameter, 0, 0.1)
    encoder.removed, encoder.channels = ("blocks.1",), {"blocks.0.mlp.fc2": [0, 2, 5]}
    shared = Share(bits=4).apply(encoder, Context(lambda n, seed: torch.zeros(0), tmp_path))
    save_encoder(shared, tmp_path / "model")
    found = load(tmp_path / "model")
    assert same(shared, found)
    assert found.removed == encoder.removed and found.channels == encoder.channels
    assert found.coded.keys() == shared.coded.keys()
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"model.json", "model.coded.safetensors"}
    assert weight_files(tmp_path / "model") == [tmp_path / "model" / "model.coded.safetensors"]
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert sum(description["coded"].values()) == weight_files(tmp_path / "model")[0].stat().st_size
    assert "coded weights" in description["timm_note"]
    save_encoder(encoder, tmp_path / "model")
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"model.json", "model.safetensors"}


@pytest.mark.parametrize("change", ["alter", "delete"])
def test_a_byte_of_a_coded_file_that_is_not_as_it_was_is_refused(tmp_path, change):
    shared = Share(bits=3).apply(encoder_of(), Context(lambda n, seed: torch.zeros(0), tmp_path))
    save_encoder(shared, tmp_path)
    path = tmp_path / "model.coded.safetensors"
    content = bytearray(path.read_bytes())
    if change == "alter":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2]
    path.write_bytes(content)
    with pytest.raises(UserError, match="is corrupt") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_no_encoder_comes_back_into_its_like(tmp_path):
    torch.manual_seed(0)
    model = Wrapped(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(3, 8))
    narrow = copy.deepcopy(model)
    narrow.net[0], narrow.net[2] = nn.Linear(8, 5), nn.Linear(5, 4)
    narrow.channels = {"0": [0, 1, 2, 3, 5]}
    sha256 = save_weights(narrow, tmp_path)
    found = load_weights(model, tmp_path)
    assert torch.equal(found(model.inputs).embedding_BD, narrow(model.inputs).embedding_BD)
    assert found.channels == narrow.channels and model.net[0].out_features == 6
    assert json.loads((tmp_path / "model.json").read_text())["sha256"] == sha256
    other = Wrapped(nn.Sequential(nn.Linear(8, 4)), torch.randn(3, 8))
    with pytest.raises(UserError, match=r"does not match the 'Sequential' in its model\.json"):
        load_weights(other, tmp_path)
    with pytest.raises(UserError, match="which is not an encoder"):
        load(tmp_path)


def test_several_files_of_one_model_are_all_checked(tmp_path):
    files = {"model.xml": b"<net/>", "model.bin": b"numbers"}
    sha256 = write_artifact(tmp_path, files, None, {"embed_dim": 4})
    assert [path.name for path in weight_files(tmp_path)] == list(files)
    sums = "".join(f"{hashlib.sha256(files[n]).hexdigest()}  {n}\n" for n in sorted(files))
    assert sha256 == sha256_of(files) == hashlib.sha256(sums.encode()).hexdigest()
    write_artifact(tmp_path, {"model.onnx": b"another"}, None, {"embed_dim": 4})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.onnx"]


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", "."])
def test_a_description_cannot_name_files_elsewhere(tmp_path, name):
    save_encoder(encoder_of(), tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": name}))
    with pytest.raises(UserError, match="not a file in its folder"):
        load(tmp_path)


def test_an_onnx_folder_from_before_runtimes_had_names_opens(tmp_path):
    encoder = encoder_of()
    export_onnx(encoder, tmp_path / "bare.onnx")
    spec = encoder.spec
    save_encoder(OnnxEncoder(tmp_path / "bare.onnx", encoder.embed_dim, spec), tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    description = json.loads(path.read_text())
    assert description.pop("runtime") == "onnxruntime" and description["weights"] == "model.onnx"
    path.write_text(json.dumps(description))
    x_BCHW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected_BD = encoder(x_BCHW).embedding_BD
    assert torch.allclose(load(tmp_path / "model")(x_BCHW).embedding_BD, expected_BD, atol=1e-4)
