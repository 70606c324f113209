"""Candidates for the checks of `ssdistill.testing`: every kind of this package, in small."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from ssdistill.settings.registry import LOSSES, METHODS, PROTOCOLS
from ssdistill.testing import Candidate
from ssdistill.testing.tiny_subjects import make_images

HEAD = {"hidden_dim": 16, "output_dim": 8}
METHOD_SETTINGS = {
    "simclr": {"projector": HEAD},
    "byol": {"projector": HEAD, "predictor": {"hidden_dim": 16}},
    "moco": {"projector": HEAD, "queue": 32, "bn_splits": 2},
    "moco_v3": {"projector": HEAD, "predictor": {"hidden_dim": 16}},
    "simsiam": {"projector": HEAD, "predictor": {"hidden_dim": 16}},
    "nnclr": {"projector": HEAD, "predictor": {"hidden_dim": 16}, "queue": 32},
    "barlow_twins": {"projector": HEAD},
    "vicreg": {"projector": HEAD},
    "swav": {"projector": HEAD, "num_prototypes": 12, "freeze_prototypes": 0.0, "queue": 16},
    "dino": {"projector": HEAD, "num_prototypes": 12, "freeze_last": 0.0},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "autoencoder": {"decoder_width": 16},
}
"""Widths and queues that a test can afford; a method that is not named gets its defaults."""
KEPT = tempfile.TemporaryDirectory()
FOLDER = Path(KEPT.name)
"""Gone when the tests are over."""
PROTOCOL_SETTINGS = {
    "knn": {"k": 5},
    "linear": {},
    "linear_sgd": {"steps": 6, "batch_size": 32, "lrs": (0.01, 0.1, 1.0)},
    "finetune": {"steps": 20, "batch_size": 32, "lr": 3e-3, "layer_decay": 1.0},
    "low_shot": {"draws": 3, "labels_per_class": 4},
    "robust": {"corruptions": ("gaussian_noise", "contrast"), "severities": (1, 5), "images": 60},
    "transfer": {"datasets": ({"kind": "npz", "path": str(FOLDER / "other.npz")},)},
}
SMALL = {"steps": 4, "batch_size": 32, "draws": 3, "k": 5, "labels_per_class": 4}
"""Of a protocol that is not above, as far as it has such settings."""
OTHER = make_images(12, seed=3, classes=4), make_images(5, seed=4, classes=4)
np.savez(
    FOLDER / "other.npz",
    train_images=OTHER[0].images, train_labels=OTHER[0].labels,
    test_images=OTHER[1].images, test_labels=OTHER[1].labels,
)  # fmt: skip


def protocol_settings(kind):
    known = PROTOCOLS.schema(kind).model_fields
    small = {name: value for name, value in SMALL.items() if name in known}
    return PROTOCOL_SETTINGS.get(kind, small)


OWN_LOSSES = {kind: Candidate(LOSSES, cls) for kind, cls in LOSSES.classes.items()}
OWN_METHODS = {
    kind: Candidate(METHODS, cls, METHOD_SETTINGS.get(kind, {}))
    for kind, cls in METHODS.classes.items()
}
OWN_PROTOCOLS = {
    kind: Candidate(PROTOCOLS, cls, protocol_settings(kind))
    for kind, cls in PROTOCOLS.classes.items()
}


def every_case(checks, candidates):
    """A decorator: one test of ``run`` for each check of each kind that it applies to."""
    found = [
        pytest.param(check, candidate, id=f"{name}-{kind}")
        for name, check in checks.items()
        for kind, candidate in candidates.items()
        if check.applies(candidate)
    ]
    assert found
    return pytest.mark.parametrize(("check", "candidate"), found)
