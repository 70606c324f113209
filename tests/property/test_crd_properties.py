"""Properties of CRD, its draws and its memory."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import COUNT, KNOWN, batch_of, number, outputs, rows

from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.crd import CRD, draw_contrast, scores
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import mapped


def test_the_scores_of_crd_are_float32_under_autocast():
    v_BD, memory_ND = number("crd/in/mem_s")[:8], number("crd/in/mem_t")
    arguments = v_BD, memory_ND, number("crd/in/contrast_idx0"), 0.07
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(*arguments)
    assert found.dtype == torch.float32
    picked_BKD = memory_ND[arguments[2]].double()
    reference = (torch.einsum("bkd,bd->bk", picked_BKD, v_BD.double()) / 0.07).exp()
    assert torch.allclose(found.double(), reference, rtol=1e-5)


def test_crd_never_draws_the_image_itself():
    index_B = torch.arange(40)
    contrast_BK = draw_contrast(index_B, 500, 40, step=3)
    assert torch.equal(contrast_BK[:, 0], index_B)
    assert (contrast_BK[:, 1:] != index_B[:, None]).all()
    assert contrast_BK[0, 1:].unique().tolist() == list(range(1, 40))
    assert contrast_BK[39, 1:].unique().tolist() == list(range(39))
    assert torch.equal(contrast_BK, draw_contrast(index_B, 500, 40, step=3))
    assert not torch.equal(contrast_BK, draw_contrast(index_B, 500, 40, step=4))


def make_crd() -> CRD:
    torch.manual_seed(2)
    return CRD(KNOWN, dim=6, negatives=10)


def test_the_order_of_the_batch_does_not_matter_to_crd():
    loss_of, order = make_crd(), torch.randperm(COUNT)
    (s, t), index_B = rows("s", "t"), torch.arange(COUNT) + 20
    contrast_BK = draw_contrast(index_B, 10, 40, step=0)
    permuted = copy.deepcopy(loss_of)
    expected = loss_of(outputs(s), outputs(t), batch_of(index_B), contrast_BK)
    found = permuted(
        outputs(s[order]), outputs(t[order]), batch_of(index_B[order]), contrast_BK[order]
    )
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(permuted.memory.student, loss_of.memory.student)


def test_crd_scores_and_remembers_a_view_once_however_often_it_is_paired():
    s, t, u = (Representation(x) for x in rows("s", "t", "u"))
    once, twice = make_crd(), make_crd()
    expected = once(Outputs([s]), Outputs([t, u]), batch_of())
    found = twice(Outputs([s, s, s]), Outputs([t, u, t]), batch_of())
    assert torch.equal(found, expected)
    for name, state in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], state), name


def test_crd_remembers_every_view_of_both_sides_after_scoring():
    loss_of = make_crd()
    before = copy.deepcopy(loss_of.memory)
    s, t = rows("s0", "s1"), rows("t0")
    index_B = torch.arange(COUNT) + 5
    loss_of(outputs(*s), outputs(*t), batch_of(index_B))
    for side, views in (("student", s), ("teacher", t)):
        expected = before[side]
        for x_BD in views:
            v_BD = F.normalize(getattr(loss_of, f"embed_{side}")(x_BD), dim=1)
            expected[index_B] = F.normalize(0.5 * expected[index_B] + 0.5 * v_BD, dim=1)
        assert torch.allclose(loss_of.memory[side], expected.detach(), atol=1e-6)


def test_crd_keeps_the_normalizer_of_its_first_batch():
    loss_of = make_crd()
    views = [outputs(x) for x in rows("s", "t")]
    loss_of(*views, batch_of())
    first = loss_of.normaliser.clone()
    loss_of(*(mapped(side, lambda x: 2 * x + 1) for side in views), batch_of(step=1))
    assert (first > 0).all() and torch.equal(loss_of.normaliser, first)


def test_crd_needs_two_images():
    with pytest.raises(UserError, match=r"^crd: .*two training images"):
        CRD(Shapes(4, 4, num_samples=1))
