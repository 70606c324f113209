"""Losses on distributions of similarities train with settings other than the defaults."""

import pytest
import torch
from similarity_inputs import BY_MOMENTUM, COUNT, batch_of

from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.losses import LossSettings
from ssdistill.losses.compress import CompRess
from ssdistill.losses.lightly import Lightly
from ssdistill.losses.seed import SEED
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder


def convolutional(width: int) -> Encoder:
    args = {"layers": (1, 1, 0, 0), "channels": (8, width, width, width)}
    args |= {"stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16)


def transformer(width: int) -> Encoder:
    args = {"img_size": 16, "patch_size": 4, "embed_dim": width, "depth": 2, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)


@pytest.mark.parametrize("make_student", [convolutional, transformer])
@pytest.mark.parametrize("make_teacher", [convolutional, transformer])
def test_settings_that_are_no_defaults_train(make_student, make_teacher):
    torch.manual_seed(0)
    student, teacher = make_student(16), make_teacher(24)
    known = shapes(student, teacher, 40)
    losses = {name: make(known) for name, make in BY_MOMENTUM.items() if name != "ressl"}
    losses["lightly"] = Lightly(known, local_weight=1.0, maps="stages")
    losses["compress"] = CompRess(known)
    losses["seed"] = SEED(known, small_views=1)
    distiller = Distiller(student, teacher, losses, dict.fromkeys(losses, LossSettings())).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    for step in range(2):
        views = [torch.rand(COUNT, 3, 16, 16) for _ in range(2)]
        values = distiller(views, batch_of(step))
        assert all(torch.isfinite(value) for value in values.values())
        sum(values.values()).backward()
        optimizer.step()
        distiller.after_step(step, 2)
    heads = losses["isd-projection"].head, losses["isd-projection"].momentum_head
    for trained, moved in zip(*(head.parameters() for head in heads), strict=True):
        assert trained.grad is not None and moved.grad is None
