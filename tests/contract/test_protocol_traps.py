"""Mistakes found in published evaluations; no protocol makes them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_kinds import OWN_PROTOCOLS, every_case

from ssdistill.evaluate.probes.online_probe import OnlineProbe
from ssdistill.evaluate.subject import LabeledImages
from ssdistill.settings.registry import PROTOCOLS
from ssdistill.testing.protocol_traps import (
    TRAPS,
    nothing_is_chosen_on_test_images,
    times_test_images_are_seen,
)
from ssdistill.testing.tiny_subjects import TEST, TRAIN, make_encoder, subject

TESTED = {
    "knn": {"top1_by_k_and_temperature"},
    "low_shot": {"top1_by_draw"},
    "robust": {"top1", "images"},
}
"""Details that tell of the test images, and so may change with them."""
KNOWN = ("knn", "linear", "linear_sgd", "finetune", "low_shot", "robust", "transfer")
"""Protocols all of whose other details must not; of others, those that are called like choices."""
LOOKS = {"transfer": 0}
"""How often a protocol encodes the clean test images, where it is not once."""
STRICTER = {"chosen_without_test_images", "seen_once"}
"""Checks that are made below, of more than a protocol of somebody else promises."""


@every_case({name: check for name, check in TRAPS.items() if name not in STRICTER}, OWN_PROTOCOLS)
def test_no_protocol_does_it(check, candidate):
    check.run(candidate)


@pytest.mark.parametrize("kind", OWN_PROTOCOLS)
def test_test_images_decide_nothing(kind):
    """Other test images, in another order, with other labels: everything chosen is the same."""
    but = TESTED.get(kind, set()) if kind in KNOWN else None
    nothing_is_chosen_on_test_images(OWN_PROTOCOLS[kind], but)


@pytest.mark.parametrize("kind", OWN_PROTOCOLS)
def test_test_images_are_looked_at_once_not_after_every_epoch(kind):
    """No maximum over epochs can be taken of what is tested once."""
    assert times_test_images_are_seen(OWN_PROTOCOLS[kind]) == LOOKS.get(kind, 1)


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
    """Without this the check ``evaluation_mode`` could not fail."""
    encoder, x_BCHW = make_encoder(), torch.from_numpy(TEST.images).movedim(-1, 1) / 255
    with torch.no_grad():
        evaluating = encoder(x_BCHW).embedding_BD
        training = encoder.train()(x_BCHW).embedding_BD
    assert (evaluating - training).abs().max() > 0.01


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
