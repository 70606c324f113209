"""Teachers from torchvision, with random weights in files."""

import json
import re
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.errors import UserError
from ssdistill.models.torchvision_net import (
    TorchvisionNet,
    create_torchvision_net,
    torchvision_names,
)
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers import torchvision_equivalents as torchvision_twins
from ssdistill.teachers.torchvision_equivalents import timm_equivalent
from ssdistill.teachers.torchvision_model import TorchvisionModel
from ssdistill.teachers.weights import check_keys

AS_PUBLISHED = {"aux_logits": False, "transform_input": True, "init_weights": False}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_images(size=64):
    return ImageSpec(size, (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))


def scramble(net):
    """Values that no initialization gives, so that every tensor counts."""
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value), alpha=0.02)
    return net.eval()


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """``nets(name)``: a network of torchvision and the file of its weights."""
    folder, made = tmp_path_factory.mktemp("torchvision"), {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            args = AS_PUBLISHED if name == "googlenet" else {}
            net = torchvision.models.get_model(name, weights=None, **args)
            path = folder / f"{name}.pth"
            torch.save(scramble(net).state_dict(), path)
            made[name] = net, str(path)
        return made[name]

    return make


@torch.no_grad()
def assert_sees_like(encoder, net, side, given=64):
    x_BCHW = torch.rand(2, 3, given, given)
    inside = F.interpolate(x_BCHW, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    caught = []
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    handle = linear.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    net((inside - mean) / std)
    handle.remove()
    found = encoder(x_BCHW).embedding_BD
    assert found.shape == (2, encoder.embed_dim)
    scale = float(caught[0].abs().max())
    assert torch.allclose(found, caught[0], rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "name, twin, tap",
    [
        ("resnet18", "resnet18", "layer3"),
        ("mobilenet_v3_small", "mobilenetv3_small_100", "blocks.3"),
        ("mnasnet0_5", "mnasnet_050", "blocks.4"),
    ],
)
def test_a_network_that_timm_has_too_is_built_by_timm(name, twin, tap, nets, tmp_path):
    net, path = nets(name)
    encoder, notices = TorchvisionModel(name=name, weights=path).load(make_images())
    assert (encoder.spec.library, encoder.spec.name) == ("timm", twin)
    assert (encoder.spec.image_size, encoder.spec.input_size) == (64, 224)
    assert not encoder.training
    assert (
        len(notices) == 1
        and f"{twin} resizes images from 64 to 224 pixels internally" in notices[0]
    )
    assert_sees_like(encoder, net, 224)
    encoder.set_taps((tap,))
    assert list(encoder.map_shapes()) == [tap]
    save_encoder(encoder, tmp_path)
    assert_sees_like(load(tmp_path), net, 224)
    assert json.loads((tmp_path / "model.json").read_text())["timm"]["model_name"] == twin


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "googlenet"])
def test_a_network_that_timm_lacks_gives_embeddings_without_maps(name, nets, tmp_path):
    net, path = nets(name)
    encoder, notices = TorchvisionModel(name=name, weights=path, input_size=96).load(make_images())
    assert (encoder.spec.library, encoder.spec.name) == ("torchvision", name)
    assert "has no timm equivalent" in notices[0] and "to 96 pixels internally" in notices[1]
    assert_sees_like(encoder, net, 96)
    assert encoder.tap_names == []
    with pytest.raises(UserError, match="available: none"):
        encoder.set_taps(("layer1",))
    save_encoder(encoder, tmp_path)
    assert_sees_like(load(tmp_path), net, 96)
    description = json.loads((tmp_path / "model.json").read_text())
    assert description["timm"] is None
    assert f"timm does not know torchvision's {name}" in description["timm_note"]


def test_a_network_of_the_same_name_that_computes_something_else_stays_torchvisions(
    nets, monkeypatch
):
    _, path = nets("mobilenet_v3_small")
    other = ("mobilenetv3_small_100", {"bn_eps": 1e-2})
    monkeypatch.setitem(torchvision_twins.EQUIVALENTS, "mobilenet_v3_small", other)
    teacher = TorchvisionModel(name="mobilenet_v3_small", weights=path, input_size=64)
    encoder, _ = teacher.load(make_images())
    assert encoder.spec.library == "torchvision"


@torch.no_grad()
def test_a_vision_transformer_is_renamed_for_timm(monkeypatch):
    torch.manual_seed(0)
    theirs = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=128)
    theirs = TorchvisionNet(scramble(theirs))
    args = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setitem(torchvision_twins.EQUIVALENTS, "tiny", ("vit_tiny_patch16_224", args))
    name, args, ours = timm_equivalent("tiny", theirs, 32)
    assert name == "vit_tiny_patch16_224" and args["img_size"] == 32
    x_BCHW = torch.randn(2, 3, 32, 32)
    expected = theirs(x_BCHW)
    assert torch.allclose(ours(x_BCHW), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_vision_transformer_is_built_for_the_size_of_its_file(monkeypatch):
    made = {}

    def create(name, args, channels):
        made.update(args)
        raise UserError("enough")

    monkeypatch.setattr("ssdistill.teachers.torchvision_model.create_torchvision_net", create)
    state = {
        "encoder.pos_embedding": torch.zeros(1, 1 + 24 * 24, 8),
        "conv_proj.weight": torch.zeros(8, 3, 16, 16),
    }
    with pytest.raises(UserError, match="enough"):
        TorchvisionModel(name="vit_b_16")._net(state)
    assert made == {"image_size": 384}


def test_files_of_densenet_have_names_of_old(nets, tmp_path):
    net, _ = nets("densenet121")
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d\.)", r"\1.\2", key): value
        for key, value in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "old.pth")
    teacher = TorchvisionModel(name="densenet121", weights=str(tmp_path / "old.pth"), input_size=64)
    encoder, _ = teacher.load(make_images())
    assert encoder.spec.library == "timm"
    assert_sees_like(encoder, net, 64)


@pytest.mark.parametrize("given, side", [(64, 224), (256, None)])
def test_images_larger_than_the_weights_size_are_seen_as_they_are(given, side, nets):
    _, path = nets("shufflenet_v2_x0_5")
    encoder, _ = TorchvisionModel(name="shufflenet_v2_x0_5", weights=path).load(make_images(given))
    assert encoder.spec.input_size == side
    assert encoder.spec.mean == pytest.approx(IMAGENET[0])


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", None])
def test_published_weights_are_fetched_by_name_and_checked(weights, nets, monkeypatch):
    net, _ = nets("shufflenet_v2_x0_5")
    asked = []

    def fetch(url, **how):
        asked.append((url, how))
        return net.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    teacher = TorchvisionModel(name="shufflenet_v2_x0_5", weights=weights, input_size=64)
    encoder, _ = teacher.load(make_images())
    assert_sees_like(encoder, net, 64)
    ((url, how),) = asked
    assert url == teacher.identity()["url"] and how["check_hash"] and how["weights_only"]


def test_without_a_connection_a_file_is_suggested(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(UserError) as caught:
        TorchvisionModel(name="resnet18").load(make_images())
    message = str(caught.value)
    assert message.startswith("teacher.name: weights of torchvision's 'resnet18' cannot be")
    assert "teacher.weights=FILE" in message and "\n" not in message


def test_identity_is_the_file_or_the_weights_of_a_name(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    a, b = (TorchvisionModel(name="resnet50", weights=str(tmp_path / n)).identity() for n in "ab")
    assert a != b and len(a["sha256"]) == 64
    default, v1, v2 = (
        TorchvisionModel(name="resnet50", weights=name).identity()
        for name in ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2")
    )
    assert default == v2 != v1


def test_weights_that_are_neither_a_name_nor_a_file_are_refused():
    teacher = TorchvisionModel(name="resnet50", weights="IMAGENET1K_V3")
    for ask in (teacher.identity, lambda: teacher.load(make_images())):
        with pytest.raises(UserError, match=r"weights=IMAGENET1K_V3: no such file .*1K_V2"):
            ask()


def test_weights_with_other_keys_are_refused_by_name(nets, tmp_path):
    net, _ = nets("shufflenet_v2_x0_5")
    state = net.state_dict()
    state["elsewhere.weight"] = state.pop("conv1.0.weight")
    torch.save(state, tmp_path / "w.pth")
    teacher = TorchvisionModel(name="shufflenet_v2_x0_5", weights=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"teacher\.weights: .*lacks 1 keys \(conv1\.0\.weight\)"):
        teacher.load(make_images())
    state["conv1.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="size mismatch") as caught:
        teacher.load(make_images())
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_file_of_tensors_is_refused(tmp_path):
    (tmp_path / "w.pth").write_text("not weights")
    teacher = TorchvisionModel(name="shufflenet_v2_x0_5", weights=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"teacher\.weights: cannot read .*w\.pth") as caught:
        teacher.load(make_images())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18x", "fasterrcnn_resnet50_fpn"])
def test_a_wrong_name_is_refused(name):
    with pytest.raises(UserError, match=rf"teacher\.name: torchvision has no classifier '{name}'"):
        TorchvisionModel(name=name).identity()


def test_a_network_without_a_linear_classifier_is_refused():
    with pytest.raises(UserError, match="SqueezeNet has no linear classifier"):
        create_torchvision_net("squeezenet1_1", {})


def test_arguments_and_names_of_an_artifact_are_checked():
    with pytest.raises(UserError, match=r"arguments of torchvision's 'resnet18': .*'lyers'"):
        create_torchvision_net("resnet18", {"lyers": 1})
    with pytest.raises(UserError, match=r"no classifier 'resnet18x' \(did you mean 'resnet18'"):
        create_torchvision_net("resnet18x", {})


def test_every_twin_is_the_name_of_a_network():
    assert set(torchvision_twins.EQUIVALENTS) <= set(torchvision_names())
    names = {name for name, _ in torchvision_twins.EQUIVALENTS.values()}
    assert all(torchvision_twins.timm.is_model(name) for name in names)


def test_the_registry_knows_it():
    given = {"kind": "torchvision", "name": "resnet18", "weights": None}
    teacher = TEACHERS.build(TEACHERS.schema("torchvision").model_validate(given))
    assert (teacher.name, teacher.weights) == ("resnet18", "DEFAULT")


@pytest.mark.parametrize(("count", "shown"), [(4, "k0, k1, k2, k3"), (5, "k0, k1, k2, k3, …")])
def test_of_many_wrong_keys_four_are_named(count, shown):
    with pytest.raises(UserError) as caught:
        check_keys("resnet18", "w.pth", [f"k{number}" for number in range(count)], [])
    assert str(caught.value) == (
        f"w.pth does not fit 'resnet18': it lacks {count} keys ({shown}); correct teacher.name"
    )
