"""What the losses over attention and intermediate maps may and may not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import truncnorm
from synthetic import make_outputs, make_shapes, mapped
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.ab import SCALE, boundary_error
from ssdistill.losses.at import attention_difference
from ssdistill.losses.attndistill import (
    attention_divergence,
    class_and_patches,
    merged_heads,
    on_another_grid,
)
from ssdistill.losses.fsp import flow_difference
from ssdistill.losses.ft import factor_difference
from ssdistill.losses.nst import selectivity_discrepancy
from ssdistill.losses.ofd import margins, partial_distance
from ssdistill.losses.reviewkd import Fusion, hierarchical_context
from ssdistill.losses.vid import gaussian_surprise
from ssdistill.models.representation import Outputs, Representation
from ssdistill.registry import LOSSES

KINDS = ("at", "nst", "vid", "ft", "fsp", "ab", "ofd", "reviewkd", "attndistill")
COUNT = 8


def build(kind: str, known: Shapes | None = None, **settings) -> Loss:
    torch.manual_seed(0)
    return LOSSES.build(LOSSES.schema(kind)(**settings), known or make_shapes()).train()


def batch() -> Batch:
    images = torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT), 0, 0, 2)


def make_inputs(loss: Loss) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    return make_outputs(loss, COUNT, loss.views)


def maps(seed: int = 0, channels: int = 6, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, channels, side, side, generator=generator)


def factors(count: int, seed: int = 9) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.5


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(
        value, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_images_does_not_matter(kind):
    loss_of = build(kind)
    student, teacher = make_inputs(loss_of)
    order = torch.randperm(COUNT)
    shuffled = [mapped(side, lambda x: x[order]) for side in (student, teacher)]
    assert near(loss_of(*shuffled, batch()), loss_of(student, teacher, batch()))
    alone = mapped(student, lambda x: x[order])
    assert not near(loss_of(alone, teacher, batch()), loss_of(student, teacher, batch()))


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
def test_normalised_maps_forget_their_scale(name, scale):
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


@pytest.mark.parametrize("power", [1, 2, 3])
def test_attention_is_the_mean_power_of_the_channels(power):
    s, t = maps(0, channels=2), maps(1, channels=3)
    ours, theirs = (sum(c.abs() ** power for c in x.unbind(1)).flatten(1) for x in (s, t))
    ours, theirs = (x / x.norm(dim=1, keepdim=True) for x in (ours, theirs))
    assert near(attention_difference(s, t, power), (ours - theirs).square().mean())


def test_nst_is_the_discrepancy_of_the_channels():
    s, t = maps(0, channels=3), maps(1, channels=5)
    expected = []
    for x, y in zip(s.flatten(2), t.flatten(2), strict=True):
        x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))

        def kernel(a, b):
            return torch.stack([(p @ q) ** 2 for p in a for q in b]).mean()

        expected.append(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert near(selectivity_discrepancy(s, t), torch.stack(expected).mean())


def test_nst_does_not_count_channels():
    t = maps(1)
    assert float(selectivity_discrepancy(torch.cat([t, 3 * t], 1), t)) == pytest.approx(0, abs=1e-6)
    assert float(selectivity_discrepancy(t[:, :2], t)) > 0.01


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_vids_best_variance_is_the_mean_squared_error(factor):
    s, t = maps(0), maps(1)
    error_C = (s - t).square().mean((0, 2, 3))
    log_scale_C = (factor * error_C - 1e-5).expm1().log().requires_grad_()
    gaussian_surprise(s, t, log_scale_C).backward()
    slope = torch.sign(log_scale_C.grad) * (log_scale_C.grad.abs() > 1e-6)
    assert (slope == (factor > 1) - (factor < 1)).all()


def test_vid_starts_at_its_variance_and_learns_it():
    loss_of = build("vid", initial_variance=3.0)
    student, teacher = make_inputs(loss_of)
    guess = loss_of.guesses[0]
    start_C = nn.functional.softplus(guess.log_scale) + 1e-5
    assert torch.allclose(start_C, torch.full_like(start_C, 3.0))
    optimizer = torch.optim.SGD(loss_of.parameters(), lr=10.0)
    before = guess.log_scale.detach().clone()
    loss_of(student, teacher, batch()).backward()
    optimizer.step()
    assert (guess.log_scale != before).all()


def test_a_variance_below_the_least_is_refused():
    with pytest.raises(UserError, match=r"^vid: initial_variance must be above 1e-05; got 1e-06"):
        build("vid", initial_variance=1e-6)


def gradients(loss: Loss, part: str) -> list[Tensor]:
    student, teacher = make_inputs(loss)
    loss.zero_grad(set_to_none=False)
    loss(student, teacher, batch()).backward()
    return [p.grad.clone() for name, p in loss.named_parameters() if part in name]


def test_ft_summarises_the_teacher_by_reconstruction_alone():
    alone, both = build("ft", reconstruction=0.0), build("ft", reconstruction=0.5)
    assert all(g.abs().max() == 0 for g in gradients(alone, "paraphraser"))
    _, teacher = make_inputs(both)
    factors_of, t = both.factors[0], teacher[0].maps[both.map_pairs[0].teacher]
    both.zero_grad()
    (0.5 * (factors_of.back(factors_of.paraphraser(t)) - t).square().mean()).backward()
    expected = [p.grad.clone() for p in factors_of.paraphraser.parameters()]
    for found, wanted in zip(gradients(both, "paraphraser"), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-7)


def test_ft_translates_whatever_the_reconstruction_weighs():
    pair = [gradients(build("ft", reconstruction=r), "translator") for r in (0.0, 0.5)]
    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    assert all(g.abs().max() > 0 for g in pair[0] if g.ndim > 1)


def test_a_factor_has_its_share_of_the_channels():
    for rate, width in ((0.5, 4), (0.25, 2), (0.01, 1)):
        factors_of = build("ft", rate=rate).factors[0]
        assert factors_of.paraphraser(maps(channels=8)).shape[1] == width
        assert factors_of.translator(maps(channels=6)).shape[1] == width


def test_fsp_compares_what_channels_do_together():
    (s, u), (t, v) = ([maps(seed, channels=c) for c in (2, 3)] for seed in (0, 1))
    expected = []
    for b in range(COUNT):
        for c in range(2):
            for d in range(3):
                ours, theirs = (s[b, c] * u[b, d]).mean(), (t[b, c] * v[b, d]).mean()
                expected.append((ours - theirs) ** 2)
    assert near(flow_difference([s, u], [t, v])[0], torch.stack(expected).mean())


def test_fsp_asks_for_no_common_grid():
    s, t = [maps(0), maps(1, side=2)], [maps(2, side=8), maps(3, side=4)]
    assert torch.isfinite(flow_difference(s, t)[0])


def test_fsp_needs_two_maps_and_a_head_only_between_unlike_widths():
    with pytest.raises(UserError, match=r"^fsp: compares consecutive maps: set maps=stages"):
        build("fsp", maps="last")
    assert [type(head) for head in build("fsp").heads] == [nn.Conv2d] * 4
    assert [type(head) for head in build("fsp", make_shapes(16, 16)).heads] == [nn.Identity] * 4


def test_ab_asks_for_the_side_and_the_margin_only():
    t = maps(1)
    right = 1.5 * torch.where(t > 0, 1.0, -1.0) * (1 + maps(2).abs())
    assert float(boundary_error(right, t, 1.5)) == 0
    assert near(boundary_error(maps(0), 100 * t, 1.0), boundary_error(maps(0), t, 1.0))
    wrong = torch.where(t > 0, -0.5, 0.5)
    cells = t[0].numel()
    assert float(boundary_error(wrong, t, 1.0)) == pytest.approx(1.5**2 * cells, rel=1e-6)


def test_ab_counts_an_inactive_neuron_as_below():
    s = torch.full((COUNT, 6, 4, 4), -1.0)
    assert float(boundary_error(s, torch.zeros_like(s), 1.0)) == 0
    assert float(boundary_error(-s, torch.zeros_like(s), 1.0)) > 0


@pytest.mark.parametrize("kind, scale", [("ab", SCALE), ("ofd", 1.0)])
def test_the_deepest_stage_counts_most(kind, scale):
    loss_of = build(kind)
    assert loss_of.shares == [scale / 8, scale / 4, scale / 2, scale]
    student, teacher = make_inputs(loss_of)
    found = loss_of.pairs_of(student[0], teacher[0])
    parts = torch.stack([loss_of.pair_loss(k, *pair) for k, pair in enumerate(found)])
    assert near(loss_of(student, teacher, batch()), parts.sum())


def test_ofds_margin_is_the_mean_of_the_negative_part():
    mean_C, std_C = torch.tensor([0.0, 0.7, -1.3, 2.0]), torch.tensor([1.0, 0.4, 2.0, 0.8])
    expected = [
        truncnorm.mean(-float("inf"), -m / s, loc=m, scale=s)
        for m, s in zip(mean_C.tolist(), std_C.tolist(), strict=True)
    ]
    assert torch.allclose(margins(mean_C, std_C), torch.tensor(expected, dtype=torch.float32))


def test_ofds_margin_is_three_deviations_where_negatives_are_rare():
    # Phi(-3.0902) = 0.001
    ratio_C = torch.tensor([3.08, 3.10, 50.0])
    rare = margins(2 * ratio_C, torch.full((3,), 2.0))
    assert rare[1:].tolist() == [-6.0, -6.0]
    assert -2 < float(rare[0]) < 0
    dead = margins(torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(3))
    assert torch.allclose(dead, torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)


def test_ofd_leaves_alone_what_the_relu_removes():
    t, margin_C = maps(1), -factors(6)
    floor = torch.maximum(t, margin_C[:, None, None])
    assert float(partial_distance(floor, t, margin_C)) == 0
    lower = torch.where(t > 0, floor, floor - 5 * factors(1))
    assert float(partial_distance(lower, t, margin_C)) == 0
    higher = floor + 0.1
    cells = t[0].numel()
    assert float(partial_distance(higher, t, margin_C)) == pytest.approx(0.01 * cells, rel=1e-4)


def test_ofd_takes_its_margins_from_the_teacher_and_keeps_them():
    known = make_shapes()
    norms = {name: (torch.full((8,), 0.5), torch.full((8,), 2.0)) for name in known.teacher_norms}
    loss_of = build("ofd", Shapes(**{**vars(known), "teacher_norms": norms}))
    expected_C = margins(*norms["layer1"])
    assert torch.equal(loss_of.stages[0].margin_C, expected_C)
    assert torch.equal(loss_of.state_dict()["stages.0.margin_C"], expected_C)


def test_ofd_names_the_stage_without_a_batch_norm():
    known = Shapes(**{**vars(make_shapes()), "teacher_norms": {}})
    with pytest.raises(UserError, match=r"^ofd: the teacher .* no batch norm .* 'layer1'"):
        build("ofd", known)


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_hcl_of_a_constant_offset_is_its_square(side):
    s = maps(side=side)
    assert float(hierarchical_context(s + 0.3, s)) == pytest.approx(0.09, rel=1e-4)


def test_hcl_sees_the_context():
    """Neighbours that err in opposite directions are right on coarser grids."""
    sign = torch.ones(8, 8)
    sign[:, ::2] = -1
    s = maps(side=8)
    # Own grid 1, then 1/2 + 1/4 + 1/8 that see nothing.
    expected = 0.09 / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert float(hierarchical_context(s + 0.3 * sign, s)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "names", [["layer3"], ["layer1", "layer3"], list(make_shapes().teacher_norms)]
)
def test_reviewkd_explains_each_stage_with_the_deeper_ones(names):
    loss_of = build("reviewkd", maps=names)
    student, teacher = make_inputs(loss_of)
    pairs = loss_of.pairs_of(student[0], teacher[0])
    assert len(pairs) == len(names) + 1
    sizes = [t.shape[2:] for _, t in pairs]
    guesses = loss_of.review([s for s, _ in pairs], sizes)
    assert [g.shape for g in guesses] == [t.shape for _, t in pairs]
    for k, guess in enumerate(guesses):
        found = torch.autograd.grad(
            guess.square().sum(), [s for s, _ in pairs], retain_graph=True, allow_unused=True
        )
        assert [g is not None for g in found] == [i >= k for i in range(len(pairs))]


@pytest.mark.parametrize("bias", [(50.0, -50.0), (-50.0, 50.0), (0.0, 0.0), (1.0, -1.0)])
def test_a_fusion_takes_its_shares_of_the_stage_and_of_what_is_deeper(bias):
    fusion = Fusion(6, 5, 7, deeper=True).eval()
    nn.init.zeros_(fusion.attend.weight)
    fusion.attend.bias.data = torch.tensor(bias)
    x, deeper = maps(0, side=4), maps(1, channels=5, side=2)
    joined, guess = fusion(x, deeper, (8, 8))
    ours, theirs = torch.tensor(bias).sigmoid()
    finer = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = (ours * fusion.reduce(x) + theirs * finer).repeat_interleave(2, 2)
    assert torch.allclose(joined, expected.repeat_interleave(2, 3), atol=1e-6)
    assert torch.equal(guess, fusion.expand(joined))


def test_attention_divergence_is_zero_between_equals_only():
    logits = torch.randn(COUNT, 3, 10)
    log_p = logits.log_softmax(-1)
    assert float(attention_divergence(log_p, log_p, 5.0)) == pytest.approx(0, abs=1e-7)
    assert float(attention_divergence(log_p.flip(2), log_p, 5.0)) > 0.01
    merged = (merged_heads(x, 5.0) for x in (log_p, log_p.flip(1)))
    assert torch.allclose(*merged)


def test_merged_attention_has_bounds():
    sharp = torch.full((1, 1, 10), -100.0)
    sharp[..., 3] = 0.0
    p_BN = merged_heads(sharp.log_softmax(-1), 1.0)
    assert float(p_BN.sum()) == pytest.approx(1)
    scale = 0.996 + 9e-5
    assert float(p_BN[0, 3]) == pytest.approx(0.996 / scale, rel=1e-5)
    assert float(p_BN[0, 0]) == pytest.approx(1e-5 / scale, rel=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (3, 3)])
def test_on_another_grid_the_class_token_keeps_its_share(size):
    log_p = torch.randn(COUNT, 3, 17).log_softmax(-1)
    moved = on_another_grid(log_p, (4, 4), size).exp()
    assert moved.shape == (COUNT, 3, 1 + size[0] * size[1])
    assert torch.allclose(moved[..., 0], log_p[..., 0].exp())
    assert torch.allclose(moved.sum(-1), torch.ones(COUNT, 3))


def test_on_another_grid_attention_stays_where_it_was():
    p = torch.zeros(1, 1, 17)
    p[..., 0], p[..., 1 + 4 * 3 + 2] = 0.25, 0.75
    moved = on_another_grid(p.log(), (4, 4), (2, 2)).exp()[0, 0]
    assert torch.allclose(moved, torch.tensor([0.25, 0, 0, 0, 0.75]), atol=1e-6)


def attention_shapes(student_tokens: int, teacher_tokens: int) -> Shapes:
    """Patches on 2x2 and 4x4 grids; whatever is left are the class token and registers."""
    return Shapes(
        student_dim=6,
        teacher_dim=8,
        num_samples=64,
        student_maps={"blocks.1": (6, 2, 2), "attention:blocks.1": (2, 1, student_tokens)},
        teacher_maps={"blocks.1": (8, 4, 4), "attention:blocks.1": (4, 1, teacher_tokens)},
    )


def attention_value(loss: Loss, s_BHN: Tensor, t_BHN: Tensor) -> float:
    ours = Outputs(
        [Representation(torch.ones(COUNT, 6), maps={"attention:blocks.1": s_BHN[:, :, None]})]
    )
    theirs = Outputs(
        [Representation(torch.ones(COUNT, 8), maps={"attention:blocks.1": t_BHN[:, :, None]})]
    )
    return float(loss(ours, theirs, batch()).detach())


def test_registers_are_left_out_between_unlike_networks():
    torch.manual_seed(3)
    s, t = torch.randn(COUNT, 2, 5), torch.randn(COUNT, 4, 17)
    plain = attention_value(build("attndistill", attention_shapes(5, 17)), s, t)
    registers = torch.full((COUNT, 4, 4), 7.0)
    with_registers = torch.cat([t[..., :1], registers, t[..., 1:]], -1)
    loss_of = build("attndistill", attention_shapes(5, 21))
    assert attention_value(loss_of, s, with_registers) == pytest.approx(plain, rel=1e-5)
    assert torch.equal(class_and_patches(with_registers, (4, 4)), t)


def test_a_shift_of_a_heads_logits_changes_nothing():
    torch.manual_seed(3)
    s, t = torch.randn(COUNT, 2, 5), torch.randn(COUNT, 4, 17)
    loss_of = build("attndistill", attention_shapes(5, 17))
    shifted = attention_value(loss_of, s + torch.randn(COUNT, 2, 1), t)
    assert shifted == pytest.approx(attention_value(loss_of, s, t), rel=1e-5)


def test_attndistill_weighs_its_two_terms():
    torch.manual_seed(3)
    s, t = torch.randn(COUNT, 2, 5), torch.randn(COUNT, 4, 17)
    known = attention_shapes(5, 17)
    first, second, third = (
        attention_value(build("attndistill", known, attention_weight=w), s, t)
        for w in (0.0, 1.0, 20.0)
    )
    assert second > first > 0
    assert third - first == pytest.approx(20 * (second - first), rel=1e-4)


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
