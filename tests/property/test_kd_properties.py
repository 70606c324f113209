"""Properties of KD and DKD for arbitrary inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from prototype_inputs import FEW, SEEDS, batch_of, built, inputs_of, random
from torch import nn

from ssdistill.losses.dkd import DKD, decoupled_kl
from ssdistill.losses.kd import KD, softened_kl
from ssdistill.testing.synthetic import make_shapes


@pytest.mark.parametrize("kind", [KD, DKD])
def test_the_temperature_suits_the_logits_unless_told_otherwise(kind):
    assert kind(make_shapes()).temperature == 1.0
    raw = kind(make_shapes(), logits="projection")
    assert raw.temperature == 4.0 and raw.scale == 1.0
    assert kind(make_shapes(), temperature=2.0).temperature == 2.0


@pytest.mark.parametrize("kind", [KD, DKD])
def test_a_head_that_finds_the_teachers_logits_is_at_the_minimum(kind):
    loss = built(kind)
    _, teacher = inputs_of(loss)
    del loss.head  # a module cannot be replaced by a function
    loss.head = loss.teacher_logits
    assert abs(float(loss(teacher, teacher, batch_of()))) < 1e-5
    loss.head = lambda t_VD: loss.teacher_logits(t_VD).flip(1)
    assert float(loss(teacher, teacher, batch_of())) > 0.1


@FEW
@given(SEEDS)
def test_kd_is_zero_for_equal_probabilities_and_positive_otherwise(seed):
    s_BK, t_BK = (random(6, 9, seed=seed + i) for i in range(2))
    assert abs(float(softened_kl(t_BK + 3.0, t_BK, 4.0))) < 1e-5
    assert float(softened_kl(s_BK, t_BK, 4.0)) > 1e-3


def test_kd_at_high_temperature_compares_centered_logits():
    """arXiv:1503.02531, sec. 2.1: the gradient tends to (s - t) / K for logits of mean zero."""
    s_BK, t_BK = (random(6, 9, seed=i).double() for i in range(2))
    s_BK, t_BK = (x - x.mean(1, keepdim=True) for x in (s_BK, t_BK))
    expected = (s_BK - t_BK).square().sum(1).mean() / (2 * 9)
    assert float(softened_kl(s_BK, t_BK, 200.0)) == pytest.approx(float(expected), rel=0.03)


def test_kd_gradients_keep_their_size_over_temperatures():
    s_BK, t_BK = random(6, 9, seed=0).requires_grad_(), random(6, 9, seed=1)
    norms = [
        torch.autograd.grad(softened_kl(s_BK, t_BK, t), s_BK)[0].norm().item() for t in (4.0, 32.0)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.25)


@FEW
@given(SEEDS, st.sampled_from([1.0, 4.0]))
def test_dkd_with_the_probability_of_the_others_as_beta_is_kd(seed, temperature):
    """arXiv:2203.08679, eq. 6."""
    s_BK, t_BK = (3 * random(1, 7, seed=seed + i) for i in range(2))
    target_B = t_BK.argmax(1)
    others = 1 - float((t_BK / temperature).softmax(1).max())
    parts = decoupled_kl(s_BK, t_BK, target_B, 1.0, others, temperature)
    whole = softened_kl(s_BK, t_BK, temperature)
    assert float(parts) == pytest.approx(float(whole), rel=1e-3, abs=1e-4)


def test_dkds_parts_read_what_they_say():
    s_BK, t_BK = random(5, 6, seed=0), random(5, 6, seed=1)
    target_B = torch.tensor([0, 5, 2, 2, 4])
    moved_BK = s_BK + 4 * F.one_hot(target_B, 6)
    others = [float(decoupled_kl(x, t_BK, target_B, 0.0, 1.0, 2.0)) for x in (s_BK, moved_BK)]
    assert others[0] == pytest.approx(others[1], rel=1e-4) and others[0] > 1e-3
    target = [float(decoupled_kl(x, t_BK, target_B, 1.0, 0.0, 2.0)) for x in (s_BK, moved_BK)]
    assert abs(target[0] - target[1]) > 0.1
    sure_BK = t_BK + 100 * F.one_hot(target_B, 6)
    assert math.isfinite(float(decoupled_kl(s_BK, sure_BK, target_B, 1.0, 8.0, 1.0)))


def test_dkds_target_is_the_teachers_first_choice():
    loss = built(DKD)
    student, teacher = inputs_of(loss)
    t_NK = loss.teacher_logits(teacher[0].embedding_BD)
    s_NK = loss.head(student[0].embedding_BD)
    expected = decoupled_kl(s_NK, t_NK, t_NK.max(1).indices, 1.0, 8.0, 1.0)
    torch.testing.assert_close(loss(student, teacher, batch_of()), expected)
    wrong = decoupled_kl(s_NK, t_NK, t_NK.min(1).indices, 1.0, 8.0, 1.0)
    assert (wrong - expected).abs() > 1e-3


@pytest.mark.parametrize("kind", [KD, DKD])
def test_an_mlp_head_has_a_hidden_layer(kind):
    count = [
        sum(isinstance(m, nn.Linear) for m in built(kind, head=head).head.modules())
        for head in ("linear", "mlp")
    ]
    assert count == [1, 2]
