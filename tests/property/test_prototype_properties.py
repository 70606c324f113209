"""Properties of the prototype and logit losses for arbitrary inputs."""

import pytest
import torch
import torch.nn.functional as F
from prototype_inputs import BATCH, batch_of, built, inputs_of, random

from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.base.prototypes import default_prototypes, for_each_pair
from ssdistill.losses.dino import DINO
from ssdistill.losses.dkd import DKD
from ssdistill.losses.kd import KD
from ssdistill.losses.koleo import KoLeo
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import make_shapes, make_teacher_fit, mapped

LOSSES = [DINO, KD, DKD]


@pytest.mark.parametrize(("kind", "scale"), [(DINO, 1.0), (KD, 0.08), (DKD, 0.08)])
def test_prototype_logits_are_cosines_of_centered_embeddings_over_scale(kind, scale):
    loss = kind(make_shapes())
    fitted = make_teacher_fit(loss.shapes, 64)
    loss.fit_teacher(fitted)
    x_ND = fitted.embedding_BD
    prototype_KD = loss.classify.prototype_KD
    centered_ND = x_ND - x_ND.mean(0)
    expected = F.cosine_similarity(centered_ND[:, None], prototype_KD[None], dim=2)
    torch.testing.assert_close(loss.teacher_logits(x_ND), expected / scale, rtol=1e-4, atol=1e-4)
    assert expected.max(1).values.mean() > 0.3


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
    with pytest.raises(UserError, match="prototypes=20 exceeds the 19 training images"):
        loss.fit_teacher(make_teacher_fit(loss.shapes, 19))


@pytest.mark.parametrize("kind", LOSSES)
def test_projection_logits_are_those_of_the_kept_head(kind):
    loss = built(kind, logits="projection")
    assert loss.reads_projection and not loss.fits_teacher and loss.num_logits == 10
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
    assert not loss.reads_projection and loss.fits_teacher
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
