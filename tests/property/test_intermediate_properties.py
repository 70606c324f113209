"""What the losses on attention and intermediate maps may depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intermediate_inputs import COUNT, batch, build, make_inputs, maps, near
from torch import nn

from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.ab import boundary_error
from ssdistill.losses.at import attention_difference
from ssdistill.losses.fsp import flow_difference
from ssdistill.losses.ft import factor_difference
from ssdistill.losses.nst import selectivity_discrepancy
from ssdistill.losses.ofd import partial_distance
from ssdistill.losses.reviewkd import hierarchical_context
from ssdistill.losses.vid import gaussian_surprise
from ssdistill.models.representation import Outputs
from ssdistill.testing.synthetic import make_outputs, make_shapes, mapped

KINDS = ("at", "nst", "vid", "ft", "fsp", "ab", "ofd", "reviewkd", "attndistill")


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_images_does_not_matter(kind):
    loss_of = build(kind)
    student, teacher = make_inputs(loss_of)
    order = torch.randperm(COUNT)
    shuffled = [mapped(side, lambda x: x[order]) for side in (student, teacher)]
    assert near(loss_of(*shuffled, batch()), loss_of(student, teacher, batch()))
    alone = mapped(student, lambda x: x[order])
    unequal = loss_of(alone, teacher, batch())
    assert not near(unequal, loss_of(student, teacher, batch()), tolerance=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_images_twice_count_once(kind):
    loss_of = build(kind)
    student, teacher = make_inputs(loss_of)
    twice = [mapped(side, lambda x: torch.cat([x, x])) for side in (student, teacher)]
    assert near(loss_of(*twice, batch()), loss_of(student, teacher, batch()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_the_views(kind):
    loss_of = build(kind).eval()
    (first, second), (one, two) = (make_outputs(loss_of, COUNT, 2)[i] for i in (0, 1))
    both = loss_of(Outputs([first, second]), Outputs([one, two]), batch())
    alone = [loss_of(Outputs([s]), Outputs([t]), batch()) for s, t in ((first, one), (second, two))]
    assert not near(alone[0], alone[1])
    assert near(both, torch.stack(alone).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_teachers_maps(kind):
    loss_of = build(kind)
    student, teacher = make_inputs(loss_of)
    loss_of(student, teacher, batch()).backward()
    for x in (teacher[0].embedding_BD, *teacher[0].maps.values()):
        assert x.grad is None


PURE = {
    "at": attention_difference,
    "nst": selectivity_discrepancy,
    "ft": factor_difference,
    "fsp": lambda s, t: flow_difference([s, s[:, :3, :2, :2]], [t, t[:, :3, :2, :2]])[0],
    "ab": lambda s, t: boundary_error(s, t, 1.0),
    "ofd": lambda s, t: partial_distance(s, t, -torch.ones(6)),
    "hcl": hierarchical_context,
    "vid": lambda s, t: gaussian_surprise(s, t, torch.zeros(6)),
}


@pytest.mark.parametrize("name", PURE)
def test_float64_agrees_with_float32(name):
    s, t = maps(0), maps(1)
    value = PURE[name](s, t)
    assert value.dtype == torch.float32
    assert near(PURE[name](s.double(), t.double()).float(), value)


@pytest.mark.parametrize("name", PURE)
def test_maps_of_zeros_have_finite_gradients(name):
    s = torch.zeros_like(maps()).requires_grad_()
    PURE[name](s, torch.zeros_like(maps())).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", ["at", "nst", "ft"])
@given(scale=st.floats(0.1, 10))
@settings(max_examples=10, deadline=None)
def test_normalized_maps_forget_their_scale(name, scale):
    s, t = maps(0), maps(1)
    assert near(PURE[name](scale * s, t), PURE[name](s, t), 1e-4)
    assert near(PURE[name](s, t / scale), PURE[name](s, t), 1e-4)


@pytest.mark.parametrize("name", ["at", "nst", "ft"])
def test_the_order_of_the_channels_does_not_matter(name):
    s, t = maps(0), maps(1, channels=9)
    assert near(PURE[name](s.flip(1), t), PURE[name](s, t))
    # The positions do.
    assert not near(PURE[name](s.flip(3), t), PURE[name](s, t))


@pytest.mark.parametrize("name", ["at", "nst", "ft"])
@pytest.mark.parametrize("sides", [(8, 4), (4, 8)])
def test_the_finer_map_is_averaged(name, sides):
    s, t = maps(0, side=sides[0]), maps(1, side=sides[1])
    coarse = [nn.functional.avg_pool2d(x, x.shape[2] // 4) for x in (s, t)]
    assert near(PURE[name](s, t), PURE[name](*coarse))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("attndistill", "attndistill: the teacher (the teacher) has no class-token attention"),
        ("ab", "ab: the teacher (the teacher) has no stage that ends in a ReLU"),
        ("ofd", "ofd: the teacher (the teacher) has no stage that ends in a ReLU"),
    ],
)
def test_what_a_network_lacks_is_said(kind, message):
    known = make_shapes()
    plain = {name: shape for name, shape in known.teacher_maps.items() if ":" not in name}
    with pytest.raises(UserError) as caught:
        build(kind, Shapes(**{**vars(known), "teacher_maps": plain}))
    assert str(caught.value) == message
