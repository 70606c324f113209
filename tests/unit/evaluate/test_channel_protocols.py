"""Protocols on images of five channels and two sides."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.evaluate.corruptions import CORRUPTIONS, corrupt
from ssdistill.evaluate.probes.supervised import recipe_for
from ssdistill.evaluate.protocols.finetune import Finetune
from ssdistill.evaluate.protocols.linear import Linear
from ssdistill.evaluate.protocols.linear_sgd import LinearSGD
from ssdistill.evaluate.protocols.robust import Robust
from ssdistill.evaluate.protocols.transfer import Transfer
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.representation import Representation

SIZE = (8, 14)


class Means(nn.Module):
    """Means over the quarters of five channels, and a layer that can be trained."""

    def __init__(self):
        super().__init__()
        self.shapes = set()
        self.layer = nn.Linear(20, 20)
        nn.init.eye_(self.layer.weight)

    def forward(self, x_BCHW):
        self.shapes.add(tuple(x_BCHW.shape[1:]))
        pooled_BD = nn.functional.adaptive_avg_pool2d(x_BCHW, 2).flatten(1)
        return Representation(self.layer(pooled_BD))


def split(seed, count=60, channels=5, dtype=np.float32):
    """Images of two classes that differ in their last channel."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.random((count, *SIZE, channels))
    images[..., -1] = 0.5 * images[..., -1] + 0.4 * labels[:, None, None]
    scaled = images if dtype == np.float32 else 255 * images
    return LabeledImages(scaled.astype(dtype), labels)


def subject_of(channels=5, dtype=np.float32, **facts):
    train, test = split(0, 60, channels, dtype), split(1, 40, channels, dtype)
    return Subject(Means(), train, test, image_size=SIZE, progress=False, **facts)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize(
    "protocol",
    [Linear(), LinearSGD(steps=30, batch_size=20), Finetune(steps=60, batch_size=20, lr=0.03)],
)
def test_a_protocol_reads_all_channels(protocol, dtype):
    subject = subject_of(dtype=dtype)
    assert protocol.run(subject).metrics[f"probe/{protocol.name}/top1"] > 90
    if protocol.kind != "finetune":
        assert subject.encoder.shapes == {(5, *SIZE)}


def test_views_of_probes_suit_the_channels():
    recipe = recipe_for(subject_of(), {"saturation": 0.4, "hue": 0.1, "grayscale": 0.2})
    assert (recipe.saturation, recipe.hue, recipe.drop, recipe.channels) == (0, 0, 0.2, 5)
    assert recipe_for(subject_of(), None).channels == 5
    assert recipe_for(subject_of(channels=3), None).channels is None


@pytest.mark.parametrize(
    "images, found",
    [
        (subject_of().test, "5 channels of float32"),
        (subject_of(channels=1, dtype=np.uint8).test, "1 channel of 8 bits"),
        (subject_of(channels=3).test, "3 channels of float32"),
        (LabeledImages(np.zeros((4, 7, 9, 3), np.uint8), None), "7x9 pixels"),
        (SimpleNamespace(images=np.zeros((4, 9, 9, 3), np.uint8), mean=(0, 0, 0),
                         channel_names=("a", "b", "c")), r"3 channels \(a, b, c\) of 8 bits"),
    ],
)  # fmt: skip
def test_corruptions_of_what_is_not_rgb_are_refused_by_their_key(images, found):
    settings = EvaluateSettings(robust={})
    with pytest.raises(UserError, match=rf"^evaluate.robust: .* got {found}; remove"):
        settings.check_pixels(images)


def test_ordinary_images_suit_every_protocol():
    images = LabeledImages(np.zeros((4, 9, 9, 3), np.uint8), None)
    EvaluateSettings(robust={}, transfer={"datasets": ["cifar10"]}).check_pixels(images)


def test_corruptions_are_refused_before_anything_is_encoded():
    subject = subject_of()
    with pytest.raises(UserError, match=r"^robust: corruptions require 8-bit RGB"):
        Robust().run(subject)
    assert not subject.encoder.shapes


def test_data_sets_of_other_channels_are_refused_by_their_name():
    settings = EvaluateSettings(transfer={"datasets": ["cifar10"]})
    with pytest.raises(UserError, match=r"evaluate.transfer: data set 'cifar10': .* 3 channels"):
        settings.check_pixels(subject_of().test)


def test_data_sets_that_turn_out_to_have_other_channels_are_refused(tmp_path):
    path = tmp_path / "colors.npz"
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2
    np.savez(path, train_images=images, train_labels=labels, test_images=images,
             test_labels=labels)  # fmt: skip
    protocol = Transfer(datasets=({"kind": "npz", "path": str(path), "image_size": 8},))
    with pytest.raises(UserError, match=r"'colors': .* 3 channels, the encoder takes 5"):
        protocol.run(subject_of(folder=tmp_path))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_wide_images_are_corrupted(name):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 40, 3), dtype=np.uint8)
    changed = corrupt(images, name, 5)
    assert changed.shape == images.shape and (changed != images).any()
    assert torch.equal(torch.from_numpy(corrupt(images[1:2], name, 5, index_N=[1])),
                       torch.from_numpy(changed[1:2]))  # fmt: skip
