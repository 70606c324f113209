"""Properties of SSKD and DoGo, which compare the images of one batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_inputs import COUNT, KNOWN, WIDTH, batch_of, near, outputs, rows

from ssdistill.errors import UserError
from ssdistill.losses.base.similarity import divergences, unit
from ssdistill.losses.dogo import DoGo, view_divergence
from ssdistill.losses.sskd import SSKD, kept_rows, rotation_divergence
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import make_outputs, make_shapes


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6), st.integers(0, 16))
def test_all_right_rows_and_the_best_wrong_ones_are_kept(count, seed, sixteenths):
    ratio = sixteenths / 16
    cosine_RB = rows(seed, 3 * count, count)
    own_R = torch.arange(count).repeat(3)
    kept_R = kept_rows(cosine_RB, own_R, ratio)
    order_RB = cosine_RB.argsort(1, descending=True)
    rank_R = (order_RB == own_R[:, None]).int().argmax(1)
    wrong = int((rank_R > 0).sum())
    assert kept_R[rank_R == 0].all()
    assert int(kept_R[rank_R > 0].sum()) == int(wrong * ratio)
    if kept_R.any() and not kept_R.all():
        assert rank_R[kept_R].max() <= rank_R[~kept_R].min()


def test_rows_left_out_of_sskd_do_not_count():
    cosine_RB, own_R = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.5]]), torch.tensor([0, 1, 0])
    student_RB = rows(0, 3, 2)
    each_R = divergences(2 * student_RB, 2 * cosine_RB) / 4
    # The third row is right; of the two wrong ones a half is one, the first.
    for ratio, rows_kept in ((0.0, [2]), (0.5, [0, 2]), (1.0, [0, 1, 2])):
        loss = rotation_divergence(student_RB, cosine_RB, own_R, temperature=0.5, ratio=ratio)
        assert float(loss) == near(each_R[rows_kept].mean())
    none = rotation_divergence(student_RB[:2], cosine_RB[:2], own_R[:2], 0.5, ratio=0.0)
    assert float(none) == 0


def test_sskd_pairs_each_rotation_with_its_own_image():
    """A teacher that knows every rotated image gets all rows right, and no row is dropped."""
    loss = SSKD(make_shapes(), ratio=0.0)
    student, _ = make_outputs(loss, COUNT, 1)
    t_BD = torch.eye(COUNT, 16)
    teacher = Outputs([Representation(t_BD)], {n: Representation(t_BD) for n in loss.extra_teacher})
    upright, *turned = (
        unit(loss.head(view.embedding_BD)) for view in (*student, *student.extra.values())
    )
    cosines = torch.cat(turned) @ upright.T, t_BD.repeat(3, 1) @ t_BD.T
    expected = 0.25 * divergences(cosines[0] / 0.5, cosines[1] / 0.5).mean()
    assert float(loss(student, teacher, batch_of()).detach()) == near(expected)


def test_dogo_is_the_divergence_of_images_over_their_number():
    views = [unit(rows(seed, COUNT, WIDTH)) for seed in range(4)]
    log_q = (views[0] @ views[1].T / 0.1).log_softmax(1)
    p = (views[2] @ views[3].T / 0.1).softmax(1)
    expected = F.kl_div(log_q, p, reduction="batchmean") / COUNT
    assert float(view_divergence(*views, 0.1)) == near(expected)
    loss = DoGo(KNOWN)
    assert float(loss(outputs(*views[:2]), outputs(*views[2:]), batch_of())) == near(expected)
    with pytest.raises(UserError, match="dogo: pairs name one pair"):
        loss(outputs(views[0]), outputs(views[1]), batch_of())
