"""Networks that cannot be built, or cannot encode, are reported in one line."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssdistill.chain.requirements import check_device
from ssdistill.errors import UserError
from ssdistill.models import trial
from ssdistill.models.backbones import build_encoder
from ssdistill.models.spec import EncoderSettings
from ssdistill.models.trial import check_arguments, check_encodes, check_fits
from ssdistill.train.settings import DeviceSettings


def refusal(name="resnet18", size=32, **settings):
    with pytest.raises(UserError) as caught:
        encoder = build_encoder(EncoderSettings(name=name, **settings), size)
        check_encodes(encoder, size)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"in_chans": 1}, "encoder.args.in_chans=1: the images have 3 channels"),
        ({"in_chans": "x"}, "encoder.args.in_chans=x: the images have 3 channels"),
        ({"num_classes": "x"}, "encoder.args.num_classes cannot be set"),
        ({"features_only": True}, "encoder.args.features_only cannot be set"),
        ({"out_indices": [1]}, "encoder.args.out_indices cannot be set"),
        ({"img_size": [1]}, "encoder.args of 'resnet18': "),
        ({"nope": 1}, "no argument 'nope'; remove it"),
        ({"layers": 3}, "encoder.args of 'resnet18': 'int' object is not iterable"),
        ({"layers": []}, "'resnet18' cannot encode images of 32 pixels"),
        ({"layers": [1, "x", 1, 1]}, "encoder.args of 'resnet18': "),
        ({"channels": [-1, 1, 1, 1]}, "encoder.args of 'resnet18': "),
        ({"channels": [0, 0, 0, 0]}, "layer layer1.0.conv1 has no channels; increase the widths"),
        ({"stem_type": "deep_tiered", "stem_width": 1}, "layer conv1.0 has no channels"),
        ({"act_layer": "x"}, "encoder.args of 'resnet18': KeyError 'x'"),
        ({"output_stride": 7}, "encoder.args of 'resnet18': AssertionError"),
        ({"drop_rate": "a"}, "cannot encode images of 32 pixels (could not convert"),
        ({"global_pool": ""}, "returns (1, 512, 4, 4) for one image, expected an embedding"),
        ({"channels": [10**9] * 4}, "encoder.args: 1000000000 is too large"),
        ({"layers": [10**9, 1, 1, 1]}, "encoder.args: 1000000000 is too large"),
        ({"block_args": {"a": [1, 10.0**12]}}, "is too large"),
        ({"channels": [10**6] * 4}, "network 'resnet18' needs more than this machine's "),
    ],
)
def test_arguments_of_a_network_are_tried(args, message):
    assert message in refusal(args=args)


def test_a_network_with_layers_without_end_is_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(trial, "MOST_MODULES", 300)
    args = {"layers": [10**6, 1, 1, 1]}
    assert "network 'resnet18' has more than 300 layers" in refusal(args=args)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("levit_128s", "'levit_128s' cannot encode images of 32 pixels"),
        ("mixer_s32_224", "Input height (32) doesn't match model (224)"),
        ("resnet81", "timm has no model 'resnet81' (did you mean 'resnet18'?)"),
        ("resnet18.nope", "timm has no pretrained weights 'resnet18.nope'"),
        ("", "timm has no model ''"),
    ],
)
def test_a_network_that_cannot_take_the_images_is_named(name, message):
    assert message in refusal(name)


def test_the_remedy_is_the_size_the_network_was_made_for():
    assert refusal("levit_128s").endswith("set encoder.input_size=224 or choose another network")


@pytest.mark.parametrize(
    ("spec", "side", "remedy"),
    [
        ({"args": {"depth": 1}}, 224, "check encoder.args"),
        ({"args": {"depth": 1}}, 32, "set encoder.input_size=224 or choose another network"),
        ({}, 224, "choose another network"),
        ({"input_size": 224}, 32, "choose another network"),
        ({"input_size": 96}, 224, "set encoder.input_size=224 or choose another network"),
        ({"name": "vit_base_patch16_384"}, 384, "choose another network"),
        ({"name": "vit_base_patch16_384", "library": "torchvision"}, 224, "choose another network"),
        (
            {"name": "vit_base_patch16_384", "patches": True},
            32,
            "set encoder.args.dynamic_img_size=true or encoder.input_size=384",
        ),
    ],
)
def test_a_network_made_for_a_size_is_not_told_to_take_that_size(spec, side, remedy):
    known = {"name": "resnet18", "library": "timm", "args": {}, "input_size": None} | spec
    net = SimpleNamespace(patch_embed=None) if known.pop("patches", False) else SimpleNamespace()
    encoder = SimpleNamespace(spec=SimpleNamespace(**known), net=net)
    assert trial._size_remedy(encoder, side) == f"; {remedy}"


@pytest.mark.parametrize("side", [8193, 10**6, 10**12])
def test_a_size_that_no_network_takes_is_refused_before_memory_is_asked_for(side):
    assert f"encoder.input_size={side} is too large" in refusal(input_size=side)


def test_a_stem_that_is_not_known_is_refused():
    assert "stem=small is not supported for ConvNeXt" in refusal("convnext_atto", stem="small")


def test_a_trial_leaves_taps_mode_and_random_numbers_alone(make_encoder):
    encoder = make_encoder().train()
    encoder.set_taps(("layer1",))
    state = torch.get_rng_state()
    assert check_encodes(encoder, 16) == (1, 16)
    assert encoder.training and encoder.taps == ("layer1",)
    check_fits(lambda: nn.Linear(3, 3), "a layer")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(10**9, 10**9),
        lambda: nn.Module().register_buffer("queue", torch.empty(10**9, 10**6)),
        lambda: nn.Sequential(*(nn.Linear(10**5, 10**5) for _ in range(10))),
    ],
    ids=["parameter", "buffer", "sum"],
)
def test_what_does_not_fit_is_refused_without_being_built(build):
    with pytest.raises(UserError, match=r"^heads needs more than this machine's \d+ GB of memory"):
        check_fits(build, "heads")


def test_what_cannot_be_built_without_memory_is_left_to_be_built_with_it():
    check_fits(lambda: nn.Linear("x", 3), "heads")
    assert not nn.modules.module._global_parameter_registration_hooks


@pytest.mark.parametrize("accelerator", ["tpu", "mps", "nope", "", "CPU", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_on_one_line(accelerator):
    with pytest.raises(UserError) as caught:
        check_device(DeviceSettings(accelerator=accelerator))
    message = str(caught.value)
    reason = message.removeprefix(f"device.accelerator={accelerator} is not available ")
    assert reason.startswith("on this machine; " if accelerator == "mps" else ("(", "on this mach"))
    assert "Accelerator`" not in message
    assert message.endswith("set device.accelerator=auto") and "\n" not in message


def test_the_cpu_is_always_here():
    check_device(DeviceSettings(accelerator="cpu"))


def test_an_error_without_words_is_told_by_its_type():
    assert trial.reason_of(AssertionError()) == "AssertionError"
    assert trial.reason_of(KeyError("x")) == "KeyError 'x'"
    assert trial.reason_of(ValueError("a\nb")) == "a"
    assert trial.reason_of(MemoryError()) == "not enough memory"


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_what_is_loaded_is_refused_wherever_a_network_is_built(name):
    with pytest.raises(UserError, match=f"encoder.args: '{name}' selects which weights"):
        check_arguments({name: "x"}, "encoder.args")
