"""Properties of ISD and ReSSL, whose target is the student's moving average."""

from dataclasses import replace

import pytest
import torch
from similarity_inputs import BY_MOMENTUM, COUNT, KNOWN, batch_of, near

from ssdistill.errors import UserError
from ssdistill.losses.base.similarity import unit
from ssdistill.losses.isd import ISD
from ssdistill.losses.ressl import ReSSL
from ssdistill.models.representation import Outputs
from ssdistill.testing.synthetic import make_outputs, make_shapes, mapped


@pytest.mark.parametrize("name", BY_MOMENTUM)
def test_with_the_moving_average_as_target_a_view_learns_from_the_one_before(name):
    loss = BY_MOMENTUM[name](make_shapes()).train()
    student, teacher = make_outputs(loss, COUNT, 2)
    key_BD = loss.momentum_head(student.momentum[0].embedding_BD)
    queries_BD = loss.queries([student[1]])
    expected = loss.compare(queries_BD, [key_BD], loss.bank.teacher, loss.bank)
    value = loss(student, mapped(teacher, lambda x: x * torch.nan), batch_of())
    assert float(value.detach()) == near(expected)
    assert loss.bank.pushed == COUNT and torch.equal(loss.bank.teacher[:COUNT], unit(key_BD))
    alone = Outputs(student[:1], momentum=student.momentum[:1])
    with pytest.raises(UserError, match="two student views; set pairs=same"):
        loss(alone, Outputs(teacher[:1]), batch_of())


@pytest.mark.parametrize("name", ["isd-projection", "ressl"])
def test_the_head_of_the_keys_follows_that_of_the_queries(name):
    loss = BY_MOMENTUM[name](KNOWN)
    loss.momentum = 0.75
    old = [p.clone() for p in loss.momentum_head.parameters()]
    with torch.no_grad():
        for parameter in loss.head.parameters():
            parameter.add_(1)
    loss.after_step(0, 10)
    for before, after in zip(old, loss.momentum_head.parameters(), strict=True):
        assert torch.allclose(after, before + 0.25, atol=1e-6)
        assert not after.requires_grad


@pytest.mark.parametrize("setting", [{"read": "projection"}, {"center_teacher": True}])
@pytest.mark.parametrize("kind", [ISD, ReSSL])
def test_a_target_without_the_teacher_has_no_settings_for_the_teacher(kind, setting):
    known = replace(KNOWN, teacher_projection_dim=4)
    kind(known, **setting)
    with pytest.raises(UserError, match=f"{kind.kind}: target=momentum ignores the teacher"):
        kind(known, target="momentum", **setting)
