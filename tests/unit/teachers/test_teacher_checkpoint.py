"""Why another project's checkpoint is rejected, and what it decides about the encoder."""

import hashlib

import pytest
import timm
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.spec import IMAGENET_MEAN, EncoderSettings
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.checkpoint import Checkpoint

IMAGE_SPEC = ImageSpec(image_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SHALLOW = EncoderSettings(name="resnet18", args={"layers": [1, 1, 1, 1]})
TINY = EncoderSettings(
    name="vit_tiny_patch16_224",
    args={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
)


def network(small=False, **args):
    """A ResNet's tensors as torchvision and timm name them."""
    net = timm.create_model("resnet18", **{"layers": [1, 1, 1, 1], "num_classes": 0, **args})
    state = net.state_dict()
    if small:
        state["conv1.weight"] = torch.randn(64, 3, 3, 3)
    return state


def below(prefix, state):
    return {f"{prefix}.{name}": value for name, value in state.items()}


def solo(head=None, **network_args):
    state = below("backbone", network(**network_args)) | {"classifier.weight": torch.ones(10, 512)}
    return {"state_dict": state | below("projector", {} if head is None else head.state_dict())}


@pytest.fixture
def teacher(tmp_path):
    """``teacher(content, settings…)``: of a file with that content."""

    def make(content, name="weights.pth", **settings):
        torch.save(content, tmp_path / name)
        return Checkpoint(path=str(tmp_path / name), **({"encoder": SHALLOW} | settings))

    return make


def refusal(teacher):
    with pytest.raises(UserError) as caught:
        teacher.load(IMAGE_SPEC)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_config_describes_it_and_no_file_is_needed_for_that():
    schema = TEACHERS.schema("checkpoint")
    settings = schema(path="gone.ckpt", encoder={"name": "resnet18", "stem": "small"})
    made = TEACHERS.build(settings)
    assert made.kind == "checkpoint" and made.settings.stem == "small"
    for look in (made.identity, lambda: made.load(IMAGE_SPEC)):
        with pytest.raises(UserError, match=r"gone\.ckpt: no such file or folder"):
            look()


def test_its_identity_is_the_files_sha256(teacher, tmp_path):
    made = teacher(network())
    expected = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert made.identity() == {"sha256": expected}


def test_it_is_in_eval_mode_and_says_what_it_took(teacher):
    head = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 8))
    encoder, notices = teacher(solo(head)).load(IMAGE_SPEC)
    assert not any(module.training for module in encoder.modules())
    assert notices[0] == (
        f"solo-learn, online network: loaded {len(network())} backbone tensors, "
        "loaded projector 512-16-8, ignored: classifier (1)"
    )


def test_a_file_of_other_names_is_refused(teacher):
    text = refusal(teacher({"a.weight": torch.ones(2), "b.weight": torch.ones(2)}))
    assert "weights.pth has none of the tensors of 'resnet18'" in text
    assert "solo-learn" in text and "dino" in text and "a.weight, b.weight" in text


def test_names_of_two_formats_are_refused(teacher):
    state = below("encoder_q", network()) | below("online_encoder.net", network())
    assert "matches the formats moco and byol" in refusal(teacher(state))
    text = refusal(teacher(below("backbone", network())))
    assert "matches the formats solo-learn and lightly" in text and "set teacher.format" in text
    encoder, _ = teacher(below("backbone", network()), format="lightly").load(IMAGE_SPEC)
    assert encoder.spec.mean == IMAGENET_MEAN


def test_another_format_than_the_files_is_refused(teacher):
    for name in ("moco", "byol", "vissl", "lightly", "solo-learn"):
        text = refusal(teacher(network(), format=name))
        assert f"is not a {name}" in text and "conv1.weight" in text
    assert "none of the tensors" in refusal(teacher(solo(), format="torchvision"))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"layers": [2, 1, 1, 1]}, "lacks 10 of the"),
        ({"layers": [1, 1, 1, 0]}, "tensors unknown to 'resnet18' (layer4"),
    ],
)
def test_a_partial_match_is_refused(architecture, message, teacher):
    encoder = EncoderSettings(name="resnet18", args=architecture)
    text = refusal(teacher(network(), encoder=encoder))
    assert message in text and text.count("layer") <= 6


def test_missing_tensors_can_be_allowed_and_are_all_named(teacher):
    state = network()
    gone = [name for name in state if name.startswith("layer4") and "num_batches" not in name]
    state = {name: value for name, value in state.items() if name not in gone}
    assert "teacher.allow_missing=true" in refusal(teacher(state, allow_extra=True))
    _, notices = teacher(state, allow_missing=True).load(IMAGE_SPEC)
    assert notices[-1].endswith(", ".join(gone))


def test_extra_tensors_can_be_allowed_and_are_all_named(teacher):
    extra = {f"more.{i}": torch.ones(1) for i in range(7)}
    assert "teacher.allow_extra=true" in refusal(teacher(network() | extra, allow_missing=True))
    _, notices = teacher(network() | extra, allow_extra=True).load(IMAGE_SPEC)
    assert notices[-1].endswith(", ".join(extra))


def test_counts_of_batches_may_be_missing(teacher):
    state = {k: v for k, v in network().items() if not k.endswith("num_batches_tracked")}
    encoder, _ = teacher(state).load(IMAGE_SPEC)
    torch.testing.assert_close(encoder.net.state_dict()["bn1.weight"], state["bn1.weight"])


def test_no_match_is_refused_whatever_is_allowed(teacher):
    made = teacher({"a": torch.ones(1)}, allow_missing=True, allow_extra=True)
    assert "none of the tensors" in refusal(made)


def test_another_shape_is_refused_with_both(teacher):
    state = network() | {"layer1.0.conv1.weight": torch.ones(8, 64, 3, 3)}
    text = refusal(teacher(state, allow_missing=True, allow_extra=True))
    assert "'layer1.0.conv1.weight' of shape (8, 64, 3, 3)" in text and "(64, 64, 3, 3)" in text


@pytest.mark.parametrize(("small", "given"), [(True, "native"), (False, "small")])
def test_another_stem_is_refused_with_the_remedy(small, given, teacher):
    encoder = SHALLOW.model_copy(update={"stem": given})
    text = refusal(teacher(network(small), encoder=encoder))
    assert f"set teacher.encoder.stem={'small' if small else 'native'}" in text


@pytest.mark.parametrize("small", [True, False])
def test_the_file_tells_the_stem_and_with_it_the_normalization(small, teacher):
    encoder, notices = teacher(network(small)).load(IMAGE_SPEC)
    assert encoder.spec.stem == ("small" if small else "native")
    assert encoder.spec.mean == (IMAGE_SPEC.mean if small else IMAGENET_MEAN)
    assert ("own statistics" if small else "ImageNet's") in notices[1]


def test_a_stem_that_weights_do_not_tell_must_be_set(teacher):
    state = timm.create_model("mobilenetv3_small_050", num_classes=0).state_dict()
    text = refusal(teacher(state, encoder=EncoderSettings(name="mobilenetv3_small_050")))
    assert "set teacher.encoder.stem" in text


def test_solo_learn_pads_the_small_stem_by_two_unless_told_otherwise(teacher):
    encoder, notices = teacher(solo(small=True)).load(IMAGE_SPEC)
    assert encoder.spec.stem_padding == 2 and "padding the small stem by 2 pixels" in notices[-1]
    told = EncoderSettings(**SHALLOW.model_dump() | {"stem_padding": 1})
    encoder, _ = teacher(solo(small=True), encoder=told).load(IMAGE_SPEC)
    assert encoder.spec.stem_padding == 1


def test_the_settings_decide_over_the_files_rules(teacher):
    made = teacher(network(), mean=(0.1, 0.2, 0.3), std=(1, 1, 1), input_size=48)
    encoder, _ = made.load(IMAGE_SPEC)
    assert encoder.spec.mean == (0.1, 0.2, 0.3) and encoder.spec.side == 48
    assert encoder(torch.rand(1, 3, 32, 32)).embedding_BD.shape == (1, 512)


def test_a_timm_transformer_is_normalized_as_timm_notes_and_keeps_its_side(teacher):
    big = TINY.model_copy(update={"args": {**TINY.args, "img_size": 96}})
    state = timm.create_model(big.name, num_classes=0, **big.args).state_dict()
    encoder, notices = teacher(state, encoder=big).load(IMAGE_SPEC)
    assert encoder.spec.mean == (0.5, 0.5, 0.5) and encoder.spec.side == 96
    assert "to 96 pixels internally" in notices[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "teacher.mean is set without teacher.std: set both"),
        ({"encoder": EncoderSettings(pretrained=True)}, "teacher.encoder.pretrained"),
        ({"encoder": EncoderSettings(name="resnet1")}, "no model 'resnet1'"),
        ({"branch": "momentum"}, "has no momentum network in torchvision format"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message, teacher):
    assert message in refusal(teacher(network(), **settings))


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 8)),
        nn.Sequential(nn.Linear(100, 8)),
        nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4))),
    ],
)
def test_a_projector_of_unknown_structure_is_left_out(head, teacher):
    encoder, notices = teacher(solo(head)).load(IMAGE_SPEC)
    assert encoder.projector is None and "ignored projector of unknown structure" in notices[0]


def test_vibcregs_projector_has_gelus(teacher):
    head = nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4)).eval()
    encoder, _ = teacher(solo(head), name="vibcreg-cifar10-ep=9.ckpt").load(IMAGE_SPEC)
    h_BD = torch.randn(3, 512)
    torch.testing.assert_close(encoder.projector(h_BD), head(h_BD))


def test_half_precision_weights_become_single(teacher):
    state = {name: value.half() for name, value in network().items()}
    encoder, _ = teacher(state).load(IMAGE_SPEC)
    assert encoder(torch.rand(1, 3, 32, 32)).embedding_BD.dtype == torch.float32


def test_a_projector_that_is_not_finite_is_said(teacher):
    head = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4))
    head[0].weight.data[0, 0] = float("nan")
    _, notices = teacher(solo(head)).load(IMAGE_SPEC)
    assert any("tensors hold NaN or infinity (0.weight)" in notice for notice in notices)
