"""Tiny images, a tiny encoder, and every protocol with settings that take seconds."""

import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import PROTOCOLS

CLASSES, SIDE = 10, 16
KEPT = tempfile.TemporaryDirectory()
FOLDER = Path(KEPT.name)
"""Gone when the tests are over."""
SETTINGS = {
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
KINDS = list(PROTOCOLS.classes)


def settings_for(kind):
    known = PROTOCOLS.schema(kind).model_fields
    return SETTINGS.get(kind, {name: value for name, value in SMALL.items() if name in known})


def build(kind, **changes):
    """A protocol from settings as a config gives them."""
    return PROTOCOLS.build(PROTOCOLS.schema(kind)(**{**settings_for(kind), **changes}))


def make_images(per_class, seed, classes=CLASSES):
    """Noise over a coarse pattern of the class: neither hopeless nor easy."""
    pattern = np.random.default_rng(99).integers(0, 150, (CLASSES, 4, 4, 3))
    labels = np.tile(np.arange(classes), per_class)
    coarse = pattern.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)[labels]
    noise = np.random.default_rng(seed).integers(0, 105, coarse.shape)
    return LabeledImages((coarse + noise).astype(np.uint8), labels)


TRAIN, TEST = make_images(20, seed=1), make_images(10, seed=2)
OTHER = make_images(12, seed=3, classes=4), make_images(5, seed=4, classes=4)
np.savez(
    FOLDER / "other.npz",
    train_images=OTHER[0].images, train_labels=OTHER[0].labels,
    test_images=OTHER[1].images, test_labels=OTHER[1].labels,
)  # fmt: skip


def make_encoder():
    """Batch norms that have seen images: in training mode it would answer otherwise."""
    state = torch.get_rng_state()
    torch.manual_seed(7)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_type": "deep"}
    settings = EncoderSettings(name="resnet10t", args={**args, "stem_width": 8}, stem_stride=2)
    encoder = build_encoder(settings, SIDE)
    with torch.no_grad():
        for seed in range(20):
            images = torch.from_numpy(make_images(3, seed).images)
            encoder.train()(images.movedim(-1, 1) / 255)
    torch.set_rng_state(state)
    return encoder.eval()


def subject(encoder=None, train=TRAIN, test=TEST):
    return Subject(encoder or make_encoder(), train, test, folder=FOLDER, progress=False)


def fingerprint(encoder):
    """Everything of an encoder that a protocol has to leave alone."""
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    return {
        "values": {
            name: hashlib.sha256(t.detach().cpu().numpy().tobytes()).hexdigest()
            for name, t in tensors.items()
        },
        "devices": {name: t.device for name, t in tensors.items()},
        "dtypes": {name: t.dtype for name, t in tensors.items()},
        "trained": {name: p.requires_grad for name, p in encoder.named_parameters()},
        "gradients": {name: p.grad is None for name, p in encoder.named_parameters()},
        "modes": {name: module.training for name, module in encoder.named_modules()},
        "hooks": {name: len(m._forward_hooks) for name, m in encoder.named_modules()},
    }


def documented(cls):
    """Names below ``Args:`` in the docstring of a class."""
    _, _, section = (cls.__doc__ or "").partition("Args:")
    named = re.findall(r"^ {8}([a-z0-9_]+(?:, [a-z0-9_]+)*):", section, re.MULTILINE)
    return {name for names in named for name in names.split(", ")}
