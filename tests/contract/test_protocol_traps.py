"""Mistakes found in published evaluations; no protocol makes them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_subjects import KINDS, SIDE, TEST, TRAIN, build, make_encoder, make_images, subject
from torch import nn

from ssdistill.data.views import eval_view
from ssdistill.evaluate.probes.online_probe import OnlineProbe
from ssdistill.evaluate.subject import LabeledImages
from ssdistill.settings.registry import PROTOCOLS

LOOKS = {"transfer": 0}
"""How often a protocol encodes the clean test images, where it is not once."""

every_kind = pytest.mark.parametrize("kind", KINDS)


def answers(result):
    """The answered labels; protocols without an answer per image are skipped."""
    if result.classification is None:
        pytest.skip("no answer per image")
    return result.classification.predictions


def test_the_online_probe_is_never_called_like_a_protocol():
    store = SimpleNamespace(labels=TRAIN.labels[:20])

    class Store(SimpleNamespace):
        def __len__(self):
            return len(self.labels)

    probe = OnlineProbe(Store(labels=store.labels), 4)
    task = SimpleNamespace(last_embeddings=[torch.randn(20, 4, generator=torch.Generator())])
    found = probe.after_step(0, SimpleNamespace(index_B=torch.arange(20)), task)
    assert list(found) == ["probe/online/top1"]
    names = [
        name
        for kind, cls in PROTOCOLS.classes.items()
        for name in (kind, *(f"{kind}_{preset}" for preset in cls.presets))
    ]
    assert not [name for name in names if name.startswith("online")]


def test_an_encoder_in_training_mode_would_answer_otherwise():
    """Without this the next test could not fail."""
    encoder, x_BCHW = make_encoder(), torch.from_numpy(TEST.images).movedim(-1, 1) / 255
    with torch.no_grad():
        evaluating = encoder(x_BCHW).embedding_BD
        training = encoder.train()(x_BCHW).embedding_BD
    assert (evaluating - training).abs().max() > 0.01


@every_kind
def test_an_encoder_handed_over_in_training_mode_is_judged_in_evaluation_mode(kind, found):
    encoder = make_encoder().train()
    assert build(kind).run(subject(encoder)).metrics == found(kind).metrics
    assert all(module.training for module in encoder.modules())


def test_features_of_an_encoder_in_training_mode_are_those_of_evaluation_mode():
    wanted = subject(make_encoder().eval()).features("test")
    assert torch.equal(subject(make_encoder().train()).features("test"), wanted)


def test_pictures_are_normalized_by_the_encoders_statistics_not_by_their_own():
    """The same pixels have the same features, whatever the other images of their data set."""
    dark = LabeledImages(TRAIN.images // 4, TRAIN.labels)
    bright_and_dark = LabeledImages(
        np.concatenate([TEST.images, dark.images]), np.concatenate([TEST.labels, dark.labels])
    )
    wanted = subject().features("test")
    assert torch.equal(subject(train=dark).features("test"), wanted)
    mixed = subject(train=dark, test=bright_and_dark).features("test")
    torch.testing.assert_close(mixed[: len(TEST)], wanted, rtol=1e-4, atol=1e-5)


@every_kind
def test_labels_of_test_images_change_no_answer(kind, found):
    """Nothing is fitted to them, and no epoch, rate or strength is chosen by them."""
    wanted = answers(found(kind))
    wrong = LabeledImages(TEST.images, np.random.default_rng(3).permutation(TEST.labels))
    assert (answers(build(kind).run(subject(test=wrong))) == wanted).all()


@every_kind
def test_an_answer_depends_on_its_own_test_image_only(kind, found):
    """Neither statistics of the test features nor their neighbors among themselves count."""
    wanted = answers(found(kind))[::2]
    other = make_images(4, seed=8)
    mixed = LabeledImages(
        np.concatenate([255 - other.images, TEST.images[::2]]),
        np.concatenate([other.labels, TEST.labels[::2]]),
    )
    result = build(kind).run(subject(test=mixed))
    assert (answers(result)[len(other) :] == wanted).all()


class Watched(nn.Module):
    """An encoder that notes how often it is shown one image, copies of it included."""

    def __init__(self, encoder, picture_HWC):
        super().__init__()
        self.inner = encoder
        self.shown = Shown(eval_view(torch.from_numpy(picture_HWC)[None], SIDE)[0])

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x_BCHW):
        self.shown.note(x_BCHW)
        return self.inner(x_BCHW)


class Shown:
    """Counts; a deep copy is the same object."""

    def __init__(self, picture_CHW):
        self.picture_CHW, self.count = picture_CHW, 0

    def __deepcopy__(self, memo):
        return self

    def note(self, x_BCHW):
        self.count += int((x_BCHW.detach() == self.picture_CHW).all((1, 2, 3)).sum())


@every_kind
def test_test_images_are_looked_at_once_not_after_every_epoch(kind):
    """No maximum over epochs can be taken of what is tested once."""
    encoder = Watched(make_encoder(), TEST.images[-1])
    build(kind).run(subject(encoder))
    assert encoder.shown.count == LOOKS.get(kind, 1)
