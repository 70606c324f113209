"""A probe on a split of the training labels, to choose between encoders."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssdistill.errors import UserError
from ssdistill.evaluate.held_out import HeldOutProbe, training_labels_sha256
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.label_free.features import extract
from ssdistill.models.representation import Representation


def images_of(labels, noise=40):
    """Images whose red says which class they are."""
    labels = np.asarray(labels)
    classes = labels if labels.ndim == 1 else labels @ (1 << np.arange(labels.shape[1]))
    images = np.random.default_rng(0).integers(0, noise, (len(labels), 8, 8, 3))
    images[..., 0] += 50 * classes[:, None, None]
    return SimpleNamespace(images=images.astype(np.uint8), labels=labels)


def colors(x_BCHW):
    return Representation(x_BCHW.mean((2, 3)))


def blind(x_BCHW):
    return Representation(x_BCHW[:, 1:].mean((2, 3)))


def test_the_split_is_stratified_and_the_same_every_time():
    train = images_of(np.repeat([0, 1, 2], [50, 30, 20]))
    probe = HeldOutProbe.of(train, 0.2, 1000, 0)
    held = np.bincount(train.labels[probe.held_N.numpy()])
    assert held.tolist() == [10, 6, 4] and probe.counts == (80, 20)
    again, other = HeldOutProbe.of(train, 0.2, 1000, 0), HeldOutProbe.of(train, 0.2, 1000, 1)
    assert torch.equal(again.held_N, probe.held_N) and not torch.equal(other.held_N, probe.held_N)


def test_at_most_so_many_images_are_looked_at_evenly_spaced():
    train = images_of(np.arange(100) // 25)
    probe = HeldOutProbe.of(train, 0.2, 30, 0)
    assert len(probe.images_NHWC) == 25 and np.array_equal(probe.images_NHWC, train.images[::4])
    assert probe.label_N.tolist() == train.labels[::4].tolist()


def test_accuracy_is_that_of_a_linear_probe_fitted_to_the_rest():
    train = images_of(np.arange(120) % 4, noise=120)
    probe = HeldOutProbe.of(train, 0.25, 1000, 3)
    z_ND, held_N = extract(colors, train.images, 8, progress=False), probe.held_N
    rest, held = (z_ND[~held_N], train.labels[~held_N]), (z_ND[held_N], train.labels[held_N])
    expected = linear_probe(*rest, *held, folds=1).top1
    assert probe.accuracy(colors, 8) == pytest.approx(expected)
    assert probe.accuracy(blind, 8) < 60 < expected


def test_the_held_out_labels_are_not_learned_from():
    # Each image is a class of its own but for its color: only memory could know the rest.
    train = images_of(np.arange(80) % 2)
    probe = HeldOutProbe.of(train, 0.5, 1000, 0)
    swapped = HeldOutProbe(
        probe.images_NHWC, torch.where(probe.held_N, 1 - probe.label_N, probe.label_N), probe.held_N
    )
    assert probe.accuracy(colors, 8) == 100 and swapped.accuracy(colors, 8) == 0


def test_of_several_labels_it_is_the_mean_average_precision():
    labels = np.array([[a, b] for a in (0, 1) for b in (0, 1)] * 20, dtype=bool)
    probe = HeldOutProbe.of(images_of(labels), 0.25, 1000, 0)
    assert probe.label_N.dtype == torch.bool and probe.accuracy(blind, 8) < 90
    assert probe.accuracy(colors, 8) > 80


def test_an_encoder_keeps_its_mode_and_its_buffers(make_encoder):
    encoder = make_encoder().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    images = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3)).astype(np.uint8)
    train = SimpleNamespace(images=images, labels=np.arange(40) % 2)
    HeldOutProbe.of(train, 0.2, 1000, 0).accuracy(encoder, 16)
    assert encoder.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(20), "every class has a single training label, so none can be held out"),
        (np.arange(20) / 2, "training labels must be one integer per image"),
        ([], "training labels are missing"),
    ],
)
def test_labels_that_cannot_be_split_are_refused(labels, message):
    images = np.zeros((20, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=message):
        HeldOutProbe.of(SimpleNamespace(images=images, labels=labels), 0.2, 100, 0)


def test_other_labels_have_another_hash():
    hashes = [
        training_labels_sha256(SimpleNamespace(labels=np.array(labels)))
        for labels in ([0, 1], [1, 0], [[0, 1]], [False, True])
    ]
    assert len(set(hashes)) == 4
    assert hashes[0] == training_labels_sha256(SimpleNamespace(labels=np.array([0, 1])))
