"""What holds of the prototype and logit losses whatever the numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.models.modules.heads import DINOProjectionHead
from sklearn.cluster import KMeans
from synthetic import make_outputs, make_shapes, make_teacher_fit, mapped
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.dino import DINO
from ssdistill.losses.dkd import DKD, decoupled_kl
from ssdistill.losses.kd import KD, softened_kl
from ssdistill.losses.koleo import KoLeo
from ssdistill.losses.prototypes import (
    DINOHead,
    Prototypes,
    default_prototypes,
    for_each_pair,
    sinkhorn,
    spherical_kmeans,
)
from ssdistill.models.representation import Outputs, Representation

BATCH = 8
SEEDS = st.integers(0, 2**31 - 1)
FEW = settings(max_examples=25, deadline=None)
LOSSES = [DINO, KD, DKD]


def batch_of(step=0, num_steps=10):
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(BATCH), 0, step, num_steps)


def built(kind, **chosen):
    torch.manual_seed(0)
    loss = kind(make_shapes(), **chosen).train()
    loss.fit_teacher(make_teacher_fit(loss.shapes, loss.shapes.num_samples))
    return loss


def inputs_of(loss, seed=1):
    torch.manual_seed(seed)
    return make_outputs(loss, BATCH, loss.views)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# k-means


@FEW
@given(SEEDS, st.integers(2, 12))
def test_separate_clusters_get_one_prototype_each(seed, count):
    centre_KD = torch.linalg.qr(random(32, count, seed=seed)).Q.T
    x_ND = centre_KD.repeat(20, 1) + 2e-4 * random(20 * count, 32, seed=seed + 1)
    found_KD = spherical_kmeans(5 * x_ND, count)
    assert (found_KD @ centre_KD.T).max(0).values.min() > 0.99


def test_prototypes_explain_the_rows_as_well_as_a_library_does():
    x_ND = F.normalize(random(600, 16, seed=0) + 2 * random(6, 16, seed=1).repeat(100, 1), dim=1)
    ours = (x_ND @ spherical_kmeans(x_ND, 24).T).max(1).values.mean()
    centre_KD = torch.from_numpy(
        KMeans(24, n_init=3, random_state=0).fit(x_ND.numpy()).cluster_centers_
    )
    theirs = (x_ND @ F.normalize(centre_KD, dim=1).T).max(1).values.mean()
    assert ours > theirs - 0.01


def test_the_same_rows_give_the_same_prototypes_and_leave_the_generator_alone():
    x_ND = random(200, 8, seed=0)
    state = torch.get_rng_state()
    assert torch.equal(spherical_kmeans(x_ND, 16), spherical_kmeans(x_ND, 16))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("distinct", [1, 3, 40])
def test_no_prototype_is_left_without_a_direction(distinct):
    x_ND = random(distinct, 8, seed=0).repeat(40 // distinct + 1, 1)[:40]
    found_KD = spherical_kmeans(x_ND, 40)
    assert torch.allclose(found_KD.norm(dim=1), torch.ones(40))
    assert (found_KD @ F.normalize(x_ND, dim=1).T).max(0).values.min() > 0.9999


def test_an_empty_cluster_moves_to_the_worst_explained_row():
    # The sample for starting points misses the two odd rows, so that two clusters are empty.
    x_ND = torch.cat([torch.eye(8)[:1].repeat(2000, 1), torch.eye(8)[1:3]])
    found_KD = spherical_kmeans(x_ND, 3)
    assert torch.allclose((found_KD @ torch.eye(8)[:3].T).max(0).values, torch.ones(3))


def test_rows_that_are_all_alike_give_finite_logits():
    prototypes = Prototypes(4, 8)
    prototypes.fit(torch.ones(20, 8))
    assert torch.isfinite(prototypes(random(3, 8, seed=0))).all()


@pytest.mark.parametrize("change", [lambda x: 4 * x, lambda x: x + 7.0], ids=["scale", "offset"])
def test_prototype_logits_know_neither_scale_nor_offset_of_the_teacher(change):
    x_ND = random(120, 16, seed=0)
    one, other = (Prototypes(8, 16) for _ in range(2))
    one.fit(x_ND)
    other.fit(change(x_ND))
    t_BD = random(5, 16, seed=1)
    assert torch.allclose(one(t_BD), other(change(t_BD)), atol=1e-3)
    assert not torch.allclose(one(t_BD), one(-t_BD), atol=1.0)


@pytest.mark.parametrize(("kind", "scale"), [(DINO, 1.0), (KD, 0.08), (DKD, 0.08)])
def test_prototype_logits_are_cosines_of_centred_embeddings_over_scale(kind, scale):
    loss = kind(make_shapes())
    fitted = make_teacher_fit(loss.shapes, 64)
    loss.fit_teacher(fitted)
    x_ND = fitted.embedding_BD
    prototype_KD = loss.classify.prototype_KD
    centred_ND = x_ND - x_ND.mean(0)
    expected = F.cosine_similarity(centred_ND[:, None], prototype_KD[None], dim=2)
    torch.testing.assert_close(loss.teacher_logits(x_ND), expected / scale, rtol=1e-4, atol=1e-4)
    assert expected.max(1).values.mean() > 0.3


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


# Teacher's logits


@pytest.mark.parametrize("kind", LOSSES)
def test_an_unfitted_loss_is_loud(kind):
    loss = kind(make_shapes())
    assert torch.isnan(loss(*inputs_of(loss), batch_of()))


@pytest.mark.parametrize("kind", LOSSES)
def test_the_number_of_prototypes_is_bounded_by_the_images(kind):
    assert kind(Shapes(8, 8, num_samples=100_000)).num_logits == 1024
    assert kind(Shapes(8, 8, num_samples=800)).num_logits == 100
    assert kind(Shapes(8, 8, num_samples=50), prototypes=64).num_logits == 50
    assert default_prototypes(3) == 2
    with pytest.raises(UserError, match="at least two"):
        kind(Shapes(8, 8, num_samples=1))


@pytest.mark.parametrize("kind", LOSSES)
def test_too_few_images_to_fit_are_refused(kind):
    loss = kind(make_shapes(), prototypes=20)
    with pytest.raises(UserError, match="prototypes=20 need as many images, got 19"):
        loss.fit_teacher(make_teacher_fit(loss.shapes, 19))


@pytest.mark.parametrize("kind", LOSSES)
def test_projection_logits_are_those_of_the_kept_head(kind):
    loss = built(kind, logits="projection")
    assert loss.needs_projection and not loss.fits_teacher and loss.num_logits == 10
    student, teacher = inputs_of(loss)
    value = loss(student, teacher, batch_of())
    for r in teacher:
        r.embedding_BD = torch.full_like(r.embedding_BD, torch.nan)
    torch.testing.assert_close(loss(student, teacher, batch_of()), value)
    with pytest.raises(UserError, match=f"{loss.kind}: .*set logits=prototypes"):
        kind(Shapes(8, 8, num_samples=100), logits="projection")


@pytest.mark.parametrize("kind", LOSSES)
def test_prototype_logits_do_not_read_the_projection(kind):
    loss = built(kind)
    assert not loss.needs_projection and loss.fits_teacher
    student, teacher = inputs_of(loss)
    for r in teacher:
        r.projection_BP = None
    assert torch.isfinite(loss(student, teacher, batch_of()))


@pytest.mark.parametrize("kind", [*LOSSES, KoLeo])
def test_the_order_of_the_batch_does_not_matter(kind):
    loss = built(kind)
    student, teacher = inputs_of(loss)
    value = loss(student, teacher, batch_of())
    order_B = torch.randperm(BATCH)
    moved = (mapped(side, lambda x: x[order_B]) for side in (student, teacher))
    torch.testing.assert_close(loss(*moved, batch_of()), value)


@pytest.mark.parametrize("kind", LOSSES)
def test_teacher_and_student_must_be_in_the_same_order(kind):
    loss = built(kind)
    student, teacher = inputs_of(loss)
    value = loss(student, teacher, batch_of())
    moved = mapped(teacher, lambda x: x.roll(1, 0))
    assert (loss(student, moved, batch_of()) - value).abs() > 1e-4


@pytest.mark.parametrize("kind", [*LOSSES, KoLeo])
def test_float64_agrees_with_float32(kind):
    loss = built(kind)
    student, teacher = inputs_of(loss)
    value = loss(student, teacher, batch_of())
    precise = (mapped(side, lambda x: x.detach().double()) for side in (student, teacher))
    if kind is not KoLeo:
        loss.head.double()
    again = loss(*precise, batch_of())
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-6)


def test_a_view_of_several_pairs_counts_once():
    rows = []

    def note(x_VD):
        rows.append(len(x_VD))
        return 2 * x_VD

    a, b = (Representation(random(4, 3, seed=s)) for s in (0, 1))
    found = for_each_pair(Outputs([a, b, a, a]), "embedding", note)
    assert rows == [8]
    for ours, view in zip(found, (a, b, a, a), strict=True):
        assert torch.equal(ours, 2 * view.embedding_BD)


# Sinkhorn-Knopp


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


# DINO


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


def test_the_centre_scores_first_and_moves_afterwards():
    loss = built(DINO, targets="centering", center_momentum=0.75)
    first_BK, second_BK = (random(BATCH, loss.num_logits, seed=s) for s in (0, 1))
    torch.testing.assert_close(loss.assign(first_BK, 0.5), (first_BK / 0.5).softmax(1))
    torch.testing.assert_close(loss.centre_K, 0.25 * first_BK.mean(0))
    expected = ((second_BK - loss.centre_K.clone()) / 0.5).softmax(1)
    torch.testing.assert_close(loss.assign(second_BK, 0.5), expected)
    before = loss.centre_K.clone()
    loss.eval().assign(second_BK, 0.5)
    assert torch.equal(loss.centre_K, before)


def test_the_centre_moves_once_a_step_however_the_views_are_paired():
    loss = built(DINO, targets="centering")
    student, teacher = make_outputs(loss, BATCH, 3)
    a, b = teacher[:2]
    loss(Outputs([*student, student[0]]), Outputs([b, a, a, b]), batch_of())
    logits_VK = loss.teacher_logits(torch.cat([a.embedding_BD, b.embedding_BD]))
    torch.testing.assert_close(loss.centre_K, 0.1 * logits_VK.mean(0))


def test_sinkhorn_targets_use_the_classes_more_evenly_than_centred_ones():
    _, teacher = inputs_of(built(DINO))

    def spread(targets):
        loss = built(DINO, targets=targets)
        logits_VK = loss.teacher_logits(torch.cat([r.embedding_BD for r in teacher]))
        return float(loss.assign(logits_VK, 0.07).mean(0).std())

    assert spread("sinkhorn") < 0.5 * spread("centering")


# KD and DKD


@FEW
@given(SEEDS)
def test_kd_is_zero_for_equal_probabilities_and_positive_otherwise(seed):
    s_BK, t_BK = (random(6, 9, seed=seed + i) for i in range(2))
    assert abs(float(softened_kl(t_BK + 3.0, t_BK, 4.0))) < 1e-5
    assert float(softened_kl(s_BK, t_BK, 4.0)) > 1e-3


def test_kd_at_high_temperature_compares_centred_logits():
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


# KoLeo


def koleo_of(*views):
    loss = KoLeo(Shapes(8, 8, num_samples=64))
    return float(loss(Outputs([Representation(x) for x in views]), Outputs(), batch_of()))


def test_koleo_is_the_log_distance_to_the_nearest_neighbour():
    angle = torch.tensor([0.0, 0.1, 2.0])
    x_BD = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [5.0], [0.2]])
    chord = [2 * math.sin(half / 2) for half in (0.1, 0.1, 1.9)]
    assert koleo_of(x_BD) == pytest.approx(-sum(map(math.log, chord)) / 3, rel=1e-4)


def test_koleo_prefers_spread_embeddings_and_each_view_is_its_own_batch():
    spread, bunched = torch.eye(8), torch.eye(8)[:1] + 0.1 * random(8, 8, seed=0)
    assert koleo_of(spread) < koleo_of(bunched) - 0.5
    both = koleo_of(spread, spread)
    assert both == pytest.approx(koleo_of(spread))
    assert both != pytest.approx(koleo_of(torch.cat([spread, spread])))


@pytest.mark.parametrize("x_BD", [torch.ones(4, 8), torch.zeros(4, 8)], ids=["alike", "zero"])
def test_koleo_of_collapsed_embeddings_is_finite(x_BD):
    x_BD = x_BD.clone().requires_grad_()
    loss = KoLeo(Shapes(8, 8, num_samples=64))
    value = loss(Outputs([Representation(x_BD)]), Outputs(), batch_of())
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(x_BD.grad).all()
