"""Tiny labeled images and a tiny encoder, for protocols."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.backbones import Encoder
from ssdistill.testing.tiny_networks import tiny_cnn

CLASSES, SIDE = 10, 16


def make_images(per_class: int, seed: int, classes: int = CLASSES) -> LabeledImages:
    """Noise over a coarse pattern of the class: neither hopeless nor easy."""
    pattern = np.random.default_rng(99).integers(0, 150, (CLASSES, 4, 4, 3))
    labels = np.tile(np.arange(classes), per_class)
    coarse = pattern.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)[labels]
    noise = np.random.default_rng(seed).integers(0, 105, coarse.shape)
    return LabeledImages((coarse + noise).astype(np.uint8), labels)


TRAIN, TEST = make_images(20, seed=1), make_images(10, seed=2)


def make_encoder() -> Encoder:
    """Batch norms that have seen images: in training mode it would answer otherwise."""
    state = torch.get_rng_state()
    encoder = tiny_cnn(7)
    with torch.no_grad():
        for seed in range(20):
            images = torch.from_numpy(make_images(3, seed).images)
            encoder.train()(images.movedim(-1, 1) / 255)
    torch.set_rng_state(state)
    return encoder.eval()


def subject(encoder: Any = None, train: Any = TRAIN, test: Any = TEST) -> Subject:
    """What a protocol evaluates."""
    return Subject(encoder or make_encoder(), train, test, progress=False)


def fingerprint(encoder: nn.Module) -> dict[str, dict[str, Any]]:
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
