"""Small subjects for evaluation, and proof that evaluation leaves them unchanged."""

import hashlib
import random

import numpy as np
import torch
from torch import nn

from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.representation import Representation


class Colors(nn.Module):
    """Mean color of an image, times a weight: three features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x_BCHW):
        return Representation(4 * (x_BCHW.mean((2, 3)) - 0.5) @ self.weight)


def colored(count, spread, seed, classes=3):
    """ImageSpec 8x8 of one color each; the colors of a class lie around its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    own = np.eye(3)[labels % 3] * 80 + 80
    color = (own + rng.normal(0, spread, (count, 3))).clip(0, 255).astype(np.uint8)
    images = np.broadcast_to(color[:, None, None], (count, 8, 8, 3)).copy()
    return LabeledImages(images, labels, tuple("rgb"[:classes]))


def color_subject(spread=8.0, n_train=120, n_test=60, encoder=None, **facts):
    """Three classes of colors: far apart with a small spread, mixed with a large one."""
    train, test = colored(n_train, spread, 0), colored(n_test, spread, 1)
    return Subject(encoder or Colors(), train, test, progress=False, **facts)


def image_subject(encoder, n_train=48, n_test=24, **facts):
    """Noise 16x16 of two classes, one brighter, for a network."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 2
        images = rng.integers(0, 128, (count, 16, 16, 3)) + 100 * labels[:, None, None, None]
        return LabeledImages(images.astype(np.uint8), labels)

    return Subject(encoder, split(n_train), split(n_test), progress=False, **facts)


def state_of(encoder):
    """All that judging may not change: weights, buffers, modes, gradients, generators."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    modes = [(name, module.training) for name, module in encoder.named_modules()]
    wanted = [(p.requires_grad, p.grad is None, str(p.device)) for p in encoder.parameters()]
    numeric = np.random.get_state()[1].tobytes()  # noqa: NPY002
    drawn = (torch.get_rng_state().numpy().tobytes(), numeric, random.getstate())
    return digest.hexdigest(), modes, wanted, drawn
