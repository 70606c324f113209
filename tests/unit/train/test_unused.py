"""Parameters without a gradient are found without computing, and change nothing."""

import copy

import pytest
import torch
from torch import nn

from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.settings.registry import LOSSES
from ssdistill.train.loop import Training
from ssdistill.train.optim import OptimSettings
from ssdistill.train.unused import may_leave_unused


@pytest.fixture
def training(make_encoder, make_store):
    student, teacher = make_encoder(0), make_encoder(1)
    loss = LOSSES.build(LOSSES.schema("simreg")(), shapes(student, teacher, 24))
    task = Distiller(student, teacher, {"it": loss})
    loader = Loader(make_store(), 8, seed=1, num_steps=2)
    return Training(task, loader, (RECIPES["weak"],) * 2, OptimSettings(), 0, microbatch=3)


def test_a_parameter_that_no_loss_reaches_is_found(training):
    before = copy.deepcopy(training.task.state_dict())
    extra = nn.Linear(2, 2).requires_grad_(False)
    drawn = torch.get_rng_state()
    assert not may_leave_unused(training)
    training.task.extra = extra
    assert not may_leave_unused(training)
    training.task.extra.requires_grad_(True)
    assert may_leave_unused(training)
    assert torch.equal(torch.get_rng_state(), drawn)
    del training.task.extra
    for name, value in training.task.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_teacher_is_not_copied_and_what_cannot_be_followed_may_leave_some(training):
    copies = []
    training.task.teacher.__deepcopy__ = lambda memo: copies.append(1)
    assert not may_leave_unused(training) and not copies

    def forward(views, batch):
        return {"it": float(views[0].sum()) * training.task.encoder(views[0]).embedding_BD.sum()}

    training.task.forward = forward
    assert may_leave_unused(training)
