"""Properties of PCD, its positions and its queues."""

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import COUNT, WIDTH, batch_of, headless, inputs, value
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.pcd import PCD
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import NUM_SAMPLES, make_shapes


def make_pcd(side: int = 2, teacher_side: int = 2, queue: int = 32) -> PCD:
    known = Shapes(
        WIDTH,
        WIDTH,
        num_samples=NUM_SAMPLES,
        student_maps={"layer4": (WIDTH, side, side)},
        teacher_maps={"layer4": (WIDTH, teacher_side, teacher_side)},
    )
    return headless(PCD(known, queue=queue))


def map_outputs(*maps: Tensor) -> Outputs:
    return Outputs([Representation(m.mean((2, 3)), maps={"layer4": m}) for m in maps])


def make_maps(count: int, side: int = 2) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(COUNT, WIDTH, side, side) for _ in range(count)]


def test_pcd_compares_the_same_position_and_no_other():
    loss_of = make_pcd()
    s, t = make_maps(2)
    expected = value(loss_of, map_outputs(s), map_outputs(t))
    turned = value(loss_of, map_outputs(s.rot90(1, (2, 3))), map_outputs(t.rot90(1, (2, 3))))
    assert turned == pytest.approx(expected, rel=1e-6)
    assert value(loss_of, map_outputs(s.rot90(1, (2, 3))), map_outputs(t)) != pytest.approx(
        expected, rel=1e-3
    )


def test_pcd_s_queue_holds_whole_images_of_the_last_pair_s_view():
    loss_of = make_pcd(queue=COUNT)
    s0, s1, t0, t1 = make_maps(4)
    loss_of(map_outputs(s0, s1), map_outputs(t1, t0), batch_of())
    assert torch.allclose(loss_of.bank.map_0, F.normalize(t0.mean((2, 3)), dim=1), atol=1e-6)


def test_pcd_brings_the_student_s_map_to_the_teacher_s_grid():
    s, t = make_maps(1, side=4) + make_maps(1, side=2)
    wide, same = make_pcd(side=4), make_pcd()
    wide.bank.load_state_dict(same.bank.state_dict())
    expected = value(same, map_outputs(F.avg_pool2d(s, 2)), map_outputs(t))
    assert value(wide, map_outputs(s), map_outputs(t)) == pytest.approx(expected, rel=1e-6)


def test_pcd_has_a_queue_for_every_pair_of_maps():
    loss_of = headless(PCD(make_shapes(WIDTH, WIDTH), maps="stages", queue=32, hidden_dim=8))
    student, teacher = (side[:1] for side in inputs(loss_of))
    expected = []
    for name, (s, t) in zip(loss_of.bank.names, loss_of.pairs_of(*student, *teacher), strict=True):
        pixels = (x.permute(0, 2, 3, 1).flatten(0, 2) for x in (s, t))
        expected.append(float(info_nce(*pixels, loss_of.bank[name], 0.2).detach()))
    loss = loss_of(student, teacher, batch_of())
    assert len(set(expected)) == 4
    assert float(loss.detach()) == pytest.approx(sum(expected) / 4, rel=1e-6)
    for name, pair in zip(loss_of.bank.names, loss_of.map_pairs, strict=True):
        keys = F.normalize(teacher[0].maps[pair.teacher].mean((2, 3)), dim=1)
        assert torch.allclose(loss_of.bank[name][:COUNT], keys, atol=1e-6)
