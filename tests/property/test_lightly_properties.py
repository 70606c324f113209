"""Properties of Lightly, its queue and its local term."""

from dataclasses import replace

import pytest
import torch
from similarity_inputs import COUNT, KNOWN, WIDTH, bare, batch_of, rows

from ssdistill.errors import UserError
from ssdistill.losses.lightly import Lightly, token_divergence
from ssdistill.testing.synthetic import make_outputs, make_shapes


def test_an_empty_queue_of_lightly_tells_nothing():
    loss = bare(Lightly(KNOWN))
    assert not loss.bank.teacher.any()
    value = loss.compare(
        rows(1, COUNT, WIDTH), [rows(2, COUNT, WIDTH)], loss.bank.teacher, loss.bank
    )
    assert float(value) == pytest.approx(0, abs=1e-6)


def test_lightly_asks_for_feature_maps_only_for_its_local_term():
    without = replace(make_shapes(), student_maps={}, student_name="a net")
    assert Lightly(without).student_taps == Lightly(make_shapes()).student_taps == ()
    with pytest.raises(
        UserError, match=r"lightly: .*\(a net\) has no feature maps.*local_weight=0"
    ):
        Lightly(without, local_weight=1.0)
    staged = Lightly(make_shapes(), local_weight=1.0, maps=("layer2", ("layer3", "layer4")))
    assert staged.student_taps == ("layer2", "layer3")
    assert staged.teacher_taps == ("layer2", "layer4")


def test_the_local_term_of_lightly_has_its_weight():
    values = []
    for weight in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        loss = Lightly(make_shapes(), local_weight=weight, maps=("layer2",))
        torch.manual_seed(1)
        known = Lightly(make_shapes(), local_weight=1.0, maps=("layer2",))
        student, teacher = make_outputs(known, COUNT, 2)
        values.append(float(loss(student, teacher, batch_of()).detach()))
    assert values[1] > values[0]
    assert values[2] - values[0] == pytest.approx(3 * (values[1] - values[0]), rel=1e-4)


def test_tokens_alike_in_the_same_way_have_no_local_loss():
    x_BNC = rows(1, COUNT, 9, WIDTH)
    rotation_CC = torch.linalg.qr(rows(2, WIDTH, WIDTH))[0]
    assert float(token_divergence(2 * x_BNC @ rotation_CC, x_BNC, 0.07)) < 1e-6
    assert float(token_divergence(x_BNC.roll(1, 0), x_BNC, 0.07)) > 1e-3
