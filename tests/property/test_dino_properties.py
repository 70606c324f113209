"""Properties of DINO: its targets, head, temperature and center."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.models.modules.heads import DINOProjectionHead
from prototype_inputs import BATCH, FEW, SEEDS, batch_of, built, inputs_of, random

from ssdistill.losses.base.prototypes import DINOHead, sinkhorn
from ssdistill.losses.dino import DINO
from ssdistill.models.representation import Outputs
from ssdistill.testing.synthetic import make_outputs, make_shapes


@FEW
@given(SEEDS, st.integers(2, 30), st.integers(2, 30))
def test_sinkhorn_converges_to_rows_of_one_and_equal_columns(seed, batch, classes):
    target_BK = sinkhorn(random(batch, classes, seed=seed), 1.0, iterations=200)
    torch.testing.assert_close(target_BK.sum(1), torch.ones(batch))
    torch.testing.assert_close(
        target_BK.sum(0), torch.full((classes,), batch / classes), rtol=1e-3, atol=1e-3
    )


@FEW
@given(SEEDS)
def test_sinkhorn_gives_nothing_to_a_class_that_is_likelier_for_all(seed):
    logits_BK = random(12, 6, seed=seed)
    shifted_BK = logits_BK + random(6, seed=seed + 1)
    torch.testing.assert_close(
        sinkhorn(logits_BK, 0.5), sinkhorn(shifted_BK, 0.5), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_sinkhorn_neither_overflows_nor_empties_a_row(size):
    target_BK = sinkhorn(size * random(12, 6, seed=0), 0.04)
    assert torch.isfinite(target_BK).all()
    torch.testing.assert_close(target_BK.sum(1), torch.ones(12))


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_the_student_head_is_dinos():
    ours, theirs = DINOHead(12, 20, 16, 8), DINOProjectionHead(12, 16, 8, 20)
    ours.mlp.load_state_dict({f"layers.{k}": v for k, v in theirs.layers.state_dict().items()})
    ours.directions.weight.data.copy_(theirs.last_layer.weight_v)
    s_BD = random(5, 12, seed=0)
    torch.testing.assert_close(ours(s_BD), theirs(s_BD))
    with torch.no_grad():
        ours.directions.weight.mul_(3)
    torch.testing.assert_close(ours(s_BD), theirs(s_BD))


def test_the_student_head_compares_in_float32_under_autocast():
    head = DINOHead(12, 20, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cosine_BK = head(random(5, 12, seed=0))
    assert cosine_BK.dtype == torch.float32 and cosine_BK.abs().max() <= 1 + 1e-6
    assert not torch.equal(cosine_BK, cosine_BK.bfloat16().float())


def test_the_teachers_temperature_rises_and_stays():
    loss = DINO(make_shapes(), temperature_warmup=0.5)
    found = [loss.temperature_at(step, 100) for step in (0, 25, 50, 99)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert DINO(make_shapes(), temperature_warmup=0.0).temperature_at(0, 100) == 0.07


def test_the_step_decides_how_sharp_the_targets_are():
    loss = built(DINO)
    student, teacher = inputs_of(loss)
    early, late = (loss(student, teacher, batch_of(step)) for step in (0, 9))
    assert (early - late).abs() > 1e-4
    fixed = built(DINO, temperature_start=0.07)
    assert torch.equal(fixed(student, teacher, batch_of(0)), fixed(student, teacher, batch_of(9)))


def test_the_center_scores_first_and_moves_afterwards():
    loss = built(DINO, targets="centering", center_momentum=0.75)
    first_BK, second_BK = (random(BATCH, loss.num_logits, seed=s) for s in (0, 1))
    torch.testing.assert_close(loss.assign(first_BK, 0.5), (first_BK / 0.5).softmax(1))
    torch.testing.assert_close(loss.center_K, 0.25 * first_BK.mean(0))
    expected = ((second_BK - loss.center_K.clone()) / 0.5).softmax(1)
    torch.testing.assert_close(loss.assign(second_BK, 0.5), expected)
    before = loss.center_K.clone()
    loss.eval().assign(second_BK, 0.5)
    assert torch.equal(loss.center_K, before)


def test_the_center_moves_once_a_step_however_the_views_are_paired():
    loss = built(DINO, targets="centering")
    student, teacher = make_outputs(loss, BATCH, 3)
    a, b = teacher[:2]
    loss(Outputs([*student, student[0]]), Outputs([b, a, a, b]), batch_of())
    logits_VK = loss.teacher_logits(torch.cat([a.embedding_BD, b.embedding_BD]))
    torch.testing.assert_close(loss.center_K, 0.1 * logits_VK.mean(0))


def test_sinkhorn_targets_use_the_classes_more_evenly_than_centered_ones():
    _, teacher = inputs_of(built(DINO))

    def spread(targets):
        loss = built(DINO, targets=targets)
        logits_VK = loss.teacher_logits(torch.cat([r.embedding_BD for r in teacher]))
        return float(loss.assign(logits_VK, 0.07).mean(0).std())

    assert spread("sinkhorn") < 0.5 * spread("centering")
