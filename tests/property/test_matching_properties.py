"""Properties of the feature matching losses beyond single values."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base.matching import MapMean, Regression, Standardize, statistics_momentum
from ssdistill.losses.unic import mean_over_kept_teachers
from ssdistill.models.representation import Outputs
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.synthetic import make_outputs, make_shapes, make_teacher_fit, mapped

PLAIN = ["mse", "cosine", "smooth_l1"]
MAPPED = ["fitnet", "fd", "unic", "srrl", "theia", "ssim", *PLAIN]
KINDS = [*MAPPED, "simreg", "simdis", "kdep", "srd", "mgd"]
COUNT = 8


def build(kind: str, known: Shapes | None = None, **settings) -> Loss:
    torch.manual_seed(0)
    known = known or make_shapes()
    loss = LOSSES[kind](known, **settings).train()
    loss.fit_teacher(make_teacher_fit(known, 64))
    return loss


def make_batch(step: int = 0, num_steps: int = 10) -> Batch:
    images = torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT), 0, step, num_steps)


def make_pair(loss: Loss, views: int | None = None, seed: int = 1) -> tuple[Outputs, Outputs]:
    torch.manual_seed(seed)
    return make_outputs(loss, COUNT, views or loss.views)


def value(loss: Loss, student: Outputs, teacher: Outputs, **more) -> float:
    """The loss of a copy: the state stays as it was."""
    return float(copy.deepcopy(loss)(student, teacher, make_batch(), **more).detach())


def without_heads(loss: Regression) -> Regression:
    loss.heads = nn.ModuleList(nn.Identity() for _ in loss.heads)
    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_images_does_not_matter(kind):
    loss = build(kind)
    student, teacher = make_pair(loss)
    order = torch.randperm(COUNT)
    more = [{}, {}]
    if kind == "mgd":
        keep = torch.rand(COUNT, loss.shapes.teacher_maps["layer4"][0], 1, 1) > 0.3
        more = [{"keep": keep}, {"keep": keep[order]}]
    shuffled = (mapped(side, lambda x: x[order]) for side in (student, teacher))
    expected = value(loss, student, teacher, **more[0])
    assert value(loss, *shuffled, **more[1]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("cosine", {}),
        ("cosine", {"read": "maps"}),
        ("mse", {"normalize": True}),
        ("smooth_l1", {"normalize": True, "read": "maps"}),
        ("simreg", {}),
        ("simdis", {}),
        ("fd", {}),
        ("srd", {}),
    ],
)
def test_the_length_of_the_teachers_vectors_does_not_matter(kind, settings):
    loss = build(kind, **settings)
    student, teacher = make_pair(loss)
    longer = mapped(teacher, lambda x: 30 * x)
    assert value(loss, student, longer) == pytest.approx(value(loss, student, teacher), rel=2e-3)
    assert value(build("mse"), student, longer) > 2 * value(build("mse"), student, teacher)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("simreg", {}),
        *((kind, {"read": read}) for kind in PLAIN for read in ("embedding", "maps")),
    ],
)
def test_a_centered_teacher_may_be_shifted(kind, settings):
    losses = [build(kind, center_teacher=centered, **settings) for centered in (True, False)]
    student, teacher = make_pair(losses[0], views=2)
    shifted = mapped(teacher, lambda x: x + 3)
    same, different = (
        abs(value(loss, student, shifted) - value(loss, student, teacher)) for loss in losses
    )
    assert same < 1e-5 < 1e-2 < different


def test_a_centered_teacher_s_maps_have_mean_zero():
    t_BCHW = torch.rand(4, 5, 3, 3) + 2
    centered = MapMean(5).train()([t_BCHW, t_BCHW + 1])
    assert torch.allclose(torch.cat(centered).mean((0, 2, 3)), torch.zeros(5), atol=1e-5)
    assert torch.allclose(centered[1] - centered[0], torch.ones(()))


@pytest.mark.parametrize("kind", [*MAPPED, "srd", "kdep"])
def test_double_precision_gives_the_same(kind):
    known = make_shapes(16, 16)
    loss = build(kind, known)
    if kind == "srd":
        loss.head = nn.Identity()
    elif kind in MAPPED:
        without_heads(loss)
    student, teacher = make_pair(loss)
    doubled = (mapped(side, Tensor.double) for side in (student, teacher))
    expected = value(loss, student, teacher)
    found = copy.deepcopy(loss)(*doubled, make_batch())
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "distance"),
    [
        ("mse", F.mse_loss),
        ("smooth_l1", F.smooth_l1_loss),
        ("cosine", lambda s, t: 1 - F.cosine_similarity(s, t).mean()),
    ],
)
def test_an_embedding_is_matched_through_one_linear_map(kind, distance):
    loss = build(kind)
    student, teacher = make_pair(loss)
    head = loss.heads[0]
    regressed_BD = F.linear(student[0].embedding_BD, head.weight[:, :, 0, 0], head.bias)
    expected = distance(regressed_BD, teacher[0].embedding_BD).item()
    assert value(loss, student, teacher) == pytest.approx(expected, rel=1e-5)


def test_the_student_s_map_comes_to_the_teacher_s_grid():
    names = (("layer1", "layer2"), ("layer2", "layer1"))
    for pair, mode in zip(names, ("area", "bilinear"), strict=True):
        loss = without_heads(build("mse", make_shapes(16, 16), read="maps", maps=(pair,)))
        student, teacher = make_pair(loss)
        t_BCHW = teacher[0].maps[pair[1]]
        resized = F.interpolate(student[0].maps[pair[0]], t_BCHW.shape[-2:], mode=mode)
        expected = float(F.mse_loss(resized, t_BCHW).detach())
        assert value(loss, student, teacher) == pytest.approx(expected, rel=1e-5)


def test_maps_without_reading_maps_are_refused():
    with pytest.raises(UserError, match=r"^smooth_l1: .*set read=maps"):
        build("smooth_l1", maps="last")
    assert [p.student for p in build("smooth_l1", read="maps").map_pairs] == ["layer4"]
    assert build("smooth_l1").student_taps == ()


def test_fd_is_blind_to_each_position_s_mean_and_scale():
    loss = build("fd")
    student, teacher = make_pair(loss)
    teacher = mapped(teacher, lambda x: 100 * x)
    changed = mapped(teacher, lambda x: 3 * x + torch.rand_like(x[:, :1]) if x.ndim == 4 else x)
    assert value(loss, student, changed) == pytest.approx(value(loss, student, teacher), rel=1e-4)


def test_srrl_compares_only_the_mean_over_positions():
    def turned(side: Outputs) -> Outputs:
        return mapped(side, lambda x: x.flip(-1) if x.ndim == 4 else x)

    for kind, blind in (("srrl", True), ("fitnet", False)):
        loss = build(kind)
        student, teacher = make_pair(loss)
        same = value(loss, turned(student), teacher) == pytest.approx(
            value(loss, student, teacher), rel=1e-5
        )
        assert same == blind


def test_statistics_change_after_a_batch_has_been_standardized_by_the_old_ones():
    torch.manual_seed(0)
    standardize = Standardize(5).train()
    views = [3 + 2 * torch.randn(4, 5, 3, 3) for _ in range(2)]
    first = standardize(views, 1.0)
    assert torch.allclose(first[1], views[1], rtol=1e-5)
    rows = torch.cat(views).transpose(0, 1).flatten(1)
    assert torch.allclose(standardize.mean_C, rows.mean(1), rtol=1e-5)
    assert torch.allclose(standardize.std_C, rows.std(1), rtol=1e-5)
    second = torch.cat(standardize(views, 0.25)).transpose(0, 1).flatten(1)
    assert torch.allclose(second.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(second.std(1), torch.ones(5), atol=1e-4)
    kept = standardize.mean_C.clone()
    standardize.eval()([10 + v for v in views], 1.0)
    assert torch.equal(standardize.mean_C, kept)
    standardize.train()([10 + v for v in views], 0.25)
    assert torch.allclose(standardize.mean_C, kept + 0.25 * 10, rtol=1e-5)


def test_the_share_of_a_batch_in_the_statistics_falls_by_a_cosine():
    shares = [statistics_momentum(step, 100, 0.001) for step in (0, 25, 50, 100)]
    assert shares == pytest.approx([1, 0.8537, 0.5005, 0.001], abs=1e-4)


def test_unic_keeps_the_worst_teacher_of_every_image():
    loss_TB = torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 2.0]])
    none_TB = torch.zeros(2, 3, dtype=torch.bool)
    assert float(mean_over_kept_teachers(loss_TB, none_TB)) == pytest.approx(17 / 6)
    assert float(mean_over_kept_teachers(loss_TB, ~none_TB)) == pytest.approx(10 / 3)
    some_TB = torch.tensor([[True, True, False], [True, False, True]])
    assert float(mean_over_kept_teachers(loss_TB, some_TB)) == pytest.approx(14 / 4)


def test_theia_adds_the_cosine_of_the_embeddings():
    alone, both = (build("theia", summary_weight=weight) for weight in (0.0, 2.0))
    student, teacher = make_pair(both)
    summary = value(both.summary, student, teacher)
    expected = value(alone, student, teacher) + 2 * summary
    both.heads.load_state_dict(alone.heads.state_dict())
    assert value(both, student, teacher) == pytest.approx(expected, rel=1e-5)
    assert (alone.reads, both.reads) == ("maps", "embedding, maps")
