"""Teachers from an earlier run of ssdistill."""

import json
from types import SimpleNamespace

import pytest
import torch

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.heads import MLPSettings
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.finished_run import FinishedRun

TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}


def make_images(size=16):
    return ImageSpec(size, (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))


def vit(**args):
    torch.manual_seed(0)
    settings = EncoderSettings(name="vit_tiny_patch16_224", args={**TINY_VIT, **args})
    return build_encoder(settings, 16).eval()


@torch.no_grad()
def test_a_finished_stage_gives_its_encoder_and_its_projector(tmp_path, make_encoder):
    encoder = make_encoder().eval()
    encoder.projector = MLPSettings(hidden_dim=8, output_dim=4, depth=2).build(16).eval()
    sha256 = save_encoder(encoder, tmp_path / "stage" / "model")
    x_BCHW = torch.rand(2, 3, 16, 16)
    for path in ("stage", "stage/model", "stage/model/model.safetensors"):
        found, notices = FinishedRun(path=str(tmp_path / path)).load(make_images())
        found.project = encoder.project = True
        assert not found.training and notices == []
        for name in ("embedding_BD", "projection_BP"):
            ours, theirs = getattr(found(x_BCHW), name), getattr(encoder(x_BCHW), name)
            assert torch.allclose(ours, theirs, atol=1e-6)
        assert found.spec.mean == encoder.spec.mean
        identity = FinishedRun(path=str(tmp_path / path)).identity()
        assert identity["sha256"] == sha256 and len(identity["projector"]) == 64


def test_identity_follows_the_weights_and_the_projector(tmp_path, make_encoder):
    encoder, teacher = make_encoder(0), FinishedRun(path=str(tmp_path))
    found = []
    for projector in (None, MLPSettings(hidden_dim=8, output_dim=4, depth=2).build(16)):
        encoder.projector = projector
        save_encoder(encoder, tmp_path)
        found.append(teacher.identity())
    save_encoder(make_encoder(1), tmp_path)
    found.append(teacher.identity())
    assert len({json.dumps(identity) for identity in found}) == 3


@torch.no_grad()
def test_a_convolutional_network_sees_images_of_another_size_as_they_are(tmp_path, make_encoder):
    encoder = make_encoder().eval()
    save_encoder(encoder, tmp_path)
    found, notices = FinishedRun(path=str(tmp_path)).load(make_images(24))
    assert (found.spec.image_size, found.spec.input_size) == (24, None)
    assert notices == ["resnet10t was trained on images of 16 pixels but will receive 24"]
    x_BCHW = torch.rand(2, 3, 24, 24)
    assert torch.equal(found(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)


@torch.no_grad()
def test_a_network_of_a_fixed_size_sees_images_resized_to_it(tmp_path):
    encoder = vit()
    save_encoder(encoder, tmp_path)
    found, notices = FinishedRun(path=str(tmp_path)).load(make_images(8))
    assert (found.spec.image_size, found.spec.input_size) == (8, 16)
    assert len(notices) == 1 and "images from 8 to 16 pixels internally" in notices[0]
    x_BCHW = torch.rand(2, 3, 8, 8)
    inside = torch.nn.functional.interpolate(x_BCHW, (16, 16), mode="bicubic", antialias=True)
    expected = encoder(inside.clamp(0, 1)).embedding_BD
    assert torch.equal(found(x_BCHW).embedding_BD, expected)
    save_encoder(found, tmp_path / "again")
    again, _ = FinishedRun(path=str(tmp_path / "again")).load(make_images(8))
    assert torch.equal(again(x_BCHW).embedding_BD, expected)


def test_a_transformer_of_any_size_sees_images_as_they_are(tmp_path):
    save_encoder(vit(dynamic_img_size=True), tmp_path)
    found, _ = FinishedRun(path=str(tmp_path)).load(make_images(8))
    assert found.spec.input_size is None


def test_an_encoder_that_resizes_goes_on_to_do_so(tmp_path, make_encoder):
    encoder = make_encoder()
    encoder.spec = encoder.spec.model_copy(update={"input_size": 32})
    save_encoder(encoder, tmp_path)
    found, notices = FinishedRun(path=str(tmp_path)).load(make_images(8))
    assert (found.spec.image_size, found.spec.input_size) == (8, 32)
    assert (
        "from 8 to 32 pixels internally" in notices[0]
        and "16 times those at 8 pixels" in notices[0]
    )


def test_an_onnx_model_is_refused(tmp_path, make_encoder):
    (tmp_path / "bare.onnx").write_bytes(b"whatever")
    onnx = SimpleNamespace(path=tmp_path / "bare.onnx", spec=make_encoder().spec, embed_dim=16)
    save_encoder(onnx, tmp_path / "model")
    teacher = FinishedRun(path=str(tmp_path / "model"))
    for ask in (teacher.identity, lambda: teacher.load(make_images())):
        with pytest.raises(UserError, match=r"teacher\.path: .* holds an ONNX model") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_named(tmp_path):
    teacher = FinishedRun(path=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"teacher\.path: .*nothing: no such file or folder"):
        teacher.identity()
    with pytest.raises(UserError, match=r"teacher\.path: .*nothing: no such file or folder"):
        teacher.load(make_images())


def test_the_registry_knows_it():
    settings = TEACHERS.schema("run").model_validate({"kind": "run", "path": "somewhere"})
    assert TEACHERS.build(settings).path == "somewhere"
