"""Pretrained networks on images of other channels and other shapes than they were trained on."""

import pytest
import timm
import torch

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.errors import UserError
from ssdistill.models.backbones import build_encoder
from ssdistill.models.spec import EncoderSettings
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.checkpoint import Checkpoint
from ssdistill.teachers.finished_run import FinishedRun
from ssdistill.teachers.sizes import size_inside
from ssdistill.teachers.timm_model import TimmModel

FIVE = ImageSpec((32, 16), (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5)
COLOR = ImageSpec(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
ARGS = {"channels": [4, 4, 8, 8]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    net = timm.create_model("resnet18", num_classes=0, **ARGS)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(net.state_dict(), path)
    return path, net


def test_timm_adapts_the_first_layer_and_the_data_normalizes(weights):
    path, net = weights
    teacher = TimmModel(name="resnet18", args=ARGS, weights=str(path), input_size=(32, 16))
    encoder, notices = teacher.load(FIVE)
    color_OCHW = net.conv1.weight
    expected = torch.cat([color_OCHW, color_OCHW[:, :2]], 1) * 3 / 5
    assert torch.allclose(encoder.net.conv1.weight, expected)
    assert (encoder.spec.mean, encoder.spec.std) == (FIVE.mean, FIVE.std)
    assert encoder(encoder.example(1)).embedding_BD.shape == (1, 8)
    assert any("for 3 channels, are repeated and scaled for 5" in notice for notice in notices)
    _, notices = TimmModel(name="resnet18", args=ARGS, weights=str(path)).load(COLOR)
    assert not any("channels" in notice for notice in notices)


def test_timm_weights_for_as_many_channels_are_loaded_as_they_are(tmp_path):
    net = timm.create_model("resnet18", num_classes=0, in_chans=5, **ARGS)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    encoder, notices = TimmModel(
        name="resnet18", args=ARGS, weights=str(tmp_path / "w.pth"), input_size=(32, 16)
    ).load(FIVE)
    assert torch.equal(encoder.net.conv1.weight, net.conv1.weight)
    assert not any("channels" in notice for notice in notices)


@pytest.mark.parametrize(("images", "given"), [(FIVE, 5), (COLOR, 3)])
def test_timm_weights_for_other_channels_are_refused_with_both_numbers(tmp_path, images, given):
    net = timm.create_model("resnet18", num_classes=0, in_chans=4, **ARGS)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    words = f"teacher.weights: .* takes images of 4 channels, but the data has {given} channels"
    with pytest.raises(UserError, match=words):
        TimmModel(name="resnet18", args=ARGS, weights=str(tmp_path / "w.pth")).load(images)


def test_a_finished_run_for_other_channels_is_refused_with_both_numbers(tmp_path):
    save_encoder(build_encoder(EncoderSettings(name="resnet18", args=ARGS), 32), tmp_path)
    words = "teacher.path: .* takes images of 3 channels, but the data has 5 channels"
    with pytest.raises(UserError, match=words):
        FinishedRun(path=str(tmp_path)).load(FIVE)


def test_a_checkpoint_for_other_channels_is_refused_with_both_numbers(weights):
    encoder = EncoderSettings(name="resnet18", args=ARGS)
    words = "teacher.path: .* takes images of 3 channels, but the data has 5 channels"
    with pytest.raises(UserError, match=words):
        Checkpoint(path=str(weights[0]), encoder=encoder).load(FIVE)


def test_a_checkpoint_of_as_many_channels_is_normalized_by_the_data(tmp_path):
    net = timm.create_model("resnet18", num_classes=0, in_chans=5, **ARGS)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    teacher = Checkpoint(
        path=str(tmp_path / "w.pth"), encoder=EncoderSettings(name="resnet18", args=ARGS)
    )
    encoder, notices = teacher.load(FIVE)
    assert encoder.spec.mean == FIVE.mean and torch.equal(
        encoder.net.conv1.weight, net.conv1.weight
    )
    assert any("the training images' own statistics" in notice for notice in notices)


def test_statistics_have_one_number_a_channel(weights):
    teacher = Checkpoint(path=str(weights[0]), mean=(0.5,) * 3, std=(0.5,) * 3)
    words = "teacher.mean: 3 numbers, but the images have 5 channels; write one for each"
    with pytest.raises(UserError, match=words):
        teacher.load(FIVE)


@pytest.mark.parametrize(("wanted", "native", "size", "fixed", "inside"), [
    (None, 224, 32, False, 224), (None, 224, 224, False, None), (48, 224, 32, True, 48),
    (None, 224, (128, 64), True, 224), (None, 224, (128, 64), False, (320, 160)),
    (None, 224, (512, 256), False, None), ((96, 48), 224, (32, 16), False, (96, 48)),
    (None, 224, (1000, 1), False, (7072, 32)),
])  # fmt: skip
def test_the_size_inside_keeps_the_aspect_ratio(wanted, native, size, fixed, inside):
    assert size_inside(wanted, native, size, fixed) == inside


def test_what_comes_as_lists_from_a_config_is_kept_as_tuples():
    assert ImageSpec([32, 16], list(FIVE.mean), list(FIVE.std)) == FIVE
    assert ImageSpec([32, 32], COLOR.mean, COLOR.std) == COLOR
