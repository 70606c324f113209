"""Properties of single feature matching methods: formulas, states and draws."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.kdep import KDEP, power_scale, principal_directions
from ssdistill.losses.mgd import MGD
from ssdistill.losses.simdis import SimDis, multi_target_distance
from ssdistill.losses.srd import SRD, log_sum
from ssdistill.losses.ssim import dynamic_range, ssim
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import make_outputs, make_shapes, make_teacher_fit

COUNT = 8


def make_batch(step: int = 0, count: int = COUNT) -> Batch:
    images = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, step, 10)


def direct_ssim(s_HW: np.ndarray, t_HW: np.ndarray, dynamic: float, width: int) -> np.ndarray:
    """Wang et al., 2004, eq. 13, window by window."""
    sigma = 1.5 * width / 11
    offsets = np.arange(width) - (width - 1) / 2
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * dynamic) ** 2, (0.03 * dynamic) ** 2
    rows, columns = (side - width + 1 for side in s_HW.shape)
    found = np.empty((rows, columns))
    for i, j in product(range(rows), range(columns)):
        s, t = (x[i : i + width, j : j + width] for x in (s_HW, t_HW))
        mean_s, mean_t = (weight * s).sum(), (weight * t).sum()
        var_s, var_t = (weight * (s - mean_s) ** 2).sum(), (weight * (t - mean_t) ** 2).sum()
        covariance = (weight * (s - mean_s) * (t - mean_t)).sum()
        found[i, j] = (2 * mean_s * mean_t + c1) * (2 * covariance + c2)
        found[i, j] /= (mean_s**2 + mean_t**2 + c1) * (var_s + var_t + c2)
    return found


@pytest.mark.parametrize(("window", "width", "shape"), [(11, 11, (13, 14)), (11, 5, (6, 7))])
def test_ssim_follows_its_equation(window, width, shape):
    torch.manual_seed(0)
    s_BCHW, t_BCHW = torch.rand(2, 3, *shape), torch.rand(2, 3, *shape) * 5
    range_C = torch.tensor([1.0, 5.0, 0.3])
    found = ssim(s_BCHW, t_BCHW, range_C, window)
    for b, c in product(range(2), range(3)):
        s, t = (x[b, c].double().numpy() for x in (s_BCHW, t_BCHW))
        expected = direct_ssim(s, t, float(range_C[c]), width)
        assert np.allclose(found[b, c].numpy(), expected, rtol=1e-3, atol=1e-5)


def test_ssim_is_one_for_the_same_map_and_less_for_another():
    t_BCHW = torch.rand(2, 3, 9, 9)
    range_C = dynamic_range(t_BCHW)
    assert torch.allclose(ssim(t_BCHW, t_BCHW, range_C, 7), torch.ones(2, 3, 3, 3))
    assert ssim(t_BCHW + 0.3, t_BCHW, range_C, 7).max() < 1
    assert ssim(t_BCHW.flip(0), t_BCHW, range_C, 7).mean() < 0.9


def test_a_channel_that_never_fires_has_a_range_all_the_same():
    t_BCHW = torch.rand(2, 3, 4, 4)
    t_BCHW[:, 1] = 0
    range_C = dynamic_range(t_BCHW)
    spread = t_BCHW.transpose(0, 1).flatten(1)
    expected = spread.amax(1) - spread.amin(1)
    assert torch.equal(range_C[[0, 2]], expected[[0, 2]])
    assert float(range_C[1]) == pytest.approx(0.1 * float(expected.mean()))
    assert dynamic_range(torch.zeros(2, 3, 4, 4)).min() > 0


def kdep(student_dim: int, teacher_dim: int, **maps) -> KDEP:
    return KDEP(Shapes(student_dim, teacher_dim, 64, **maps))


def test_kdep_s_directions_are_the_singular_vectors():
    t_ND = np.random.default_rng(0).standard_normal((50, 6)) * [1, 5, 3, 0.5, 2, 4] + 7
    _, _, expected = np.linalg.svd(t_ND - t_ND.mean(0))
    mean_D, directions_DK = principal_directions(torch.from_numpy(t_ND), 4)
    assert np.allclose(mean_D.numpy(), t_ND.mean(0))
    cosines = np.abs((directions_DK.numpy() * expected[:4].T).sum(0))
    assert np.allclose(cosines, 1)
    largest_K = directions_DK.gather(0, directions_DK.abs().argmax(0)[None])
    assert (largest_K > 0).all()


def test_kdep_needs_no_more_images_than_it_has():
    _, directions_DK = principal_directions(torch.randn(3, 6), 6)
    assert torch.allclose(directions_DK.T @ directions_DK, torch.eye(6).double(), atol=1e-6)


def test_kdep_s_power_flattens_and_keeps_signs():
    x = torch.tensor([-0.8, 0.0, 0.0001, 2.7])
    expected = [-2.0, 0.0, 0.1, 3.0]
    assert torch.allclose(power_scale(x, 0.1, 1 / 3), torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("dims", [(4, 6), (6, 6), (9, 6)])
def test_kdep_matches_as_many_components_as_both_have(dims):
    torch.manual_seed(0)
    loss_of, width = kdep(*dims), min(dims)
    t_BD, s_BD = torch.randn(COUNT, dims[1]), torch.randn(COUNT, dims[0], requires_grad=True)
    inputs = Outputs([Representation(s_BD)]), Outputs([Representation(t_BD)]), make_batch()
    assert loss_of(*inputs).isnan()
    loss_of.fit_teacher(Representation(torch.randn(40, dims[1])))
    loss = loss_of(*inputs)
    loss.backward()
    moved = s_BD.grad.abs().amax(0) > 0
    assert moved[:width].all() and not moved[width:].any()
    perfect = F.pad(loss_of.target(t_BD), (0, dims[0] - width))
    assert float(loss_of(Outputs([Representation(perfect)]), *inputs[1:]).detach()) < 1e-10


def test_kdep_is_the_mean_over_components_and_images():
    torch.manual_seed(0)
    loss_of = kdep(9, 6)
    loss_of.fit_teacher(Representation(torch.randn(40, 6)))
    s_BD, t_BD = torch.randn(COUNT, 9), torch.randn(COUNT, 6)
    inputs = Outputs([Representation(s_BD)]), Outputs([Representation(t_BD)]), make_batch()
    assert torch.allclose(loss_of(*inputs), F.mse_loss(s_BD[:, :6], loss_of.target(t_BD)))


def test_kdep_reads_what_comes_before_the_student_s_last_relu():
    maps = {"layer3": (4, 2, 2), "before_relu:layer3": (4, 2, 2)}
    loss_of = kdep(4, 6, student_maps=maps)
    assert loss_of.student_taps == ("before_relu:layer3",) and loss_of.reads == "maps"
    loss_of.fit_teacher(make_teacher_fit(loss_of.shapes, 40))
    t_BD = torch.randn(COUNT, 6)
    s_BCHW = loss_of.target(t_BD)[..., None, None] + torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    student = Representation(torch.zeros(COUNT, 4), maps={"before_relu:layer3": s_BCHW})
    loss = loss_of(Outputs([student]), Outputs([Representation(t_BD)]), make_batch())
    assert float(loss) < 1e-10
    other_width = kdep(5, 6, student_maps=maps)
    assert other_width.student_taps == () and other_width.reads == "embedding"


def test_srd_is_blind_to_each_component_s_mean_and_scale():
    torch.manual_seed(0)
    loss_of = SRD(Shapes(6, 6, 64))
    s_BD, t_BD = torch.randn(COUNT, 6), torch.randn(COUNT, 6)

    def value(t_BD: Tensor) -> float:
        teacher = Outputs([Representation(t_BD)])
        return float(loss_of(Outputs([Representation(s_BD)]), teacher, make_batch()).detach())

    changed = 20 * (t_BD * torch.arange(1, 7) + torch.arange(6))
    assert value(changed) == pytest.approx(value(t_BD), rel=1e-3)
    assert value(t_BD.flip(1)) != pytest.approx(value(t_BD), rel=2e-3)


def test_srd_is_finite_where_student_and_teacher_agree():
    s_BD = torch.randn(COUNT, 6, requires_grad=True)
    loss = log_sum(s_BD, s_BD.detach(), 4.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(s_BD.grad).all()


def mgd(mask: str, masked: float) -> MGD:
    torch.manual_seed(0)
    return MGD(make_shapes(64, 64), maps=(("layer1", "layer1"),), mask=mask, masked=masked)


@pytest.mark.parametrize(("mask", "shape"), [("channels", (32, 1, 1)), ("space", (1, 8, 8))])
def test_mgd_blanks_out_the_share_asked_for(mask, shape):
    loss_of = mgd(mask, 0.15)
    t_BCHW = torch.zeros(400, 32, 8, 8)
    keep = loss_of.draw_keep(t_BCHW, torch.Generator().manual_seed(0), make_batch(count=400))
    assert keep.shape == (400, *shape)
    assert float(keep.float().mean()) == pytest.approx(0.85, abs=0.01)


def test_mgd_draws_by_the_step_alone_and_anew_for_every_view():
    loss_of = mgd("channels", 0.5)
    torch.manual_seed(1)
    student, teacher = make_outputs(loss_of, COUNT, 1)

    def value(step: int, views: int = 1) -> float:
        twice = (Outputs(list(side) * views) for side in (student, teacher))
        return float(loss_of(*twice, make_batch(step)).detach())

    torch.manual_seed(5)
    first = value(3)
    assert value(3) == first != value(4)
    assert value(3, views=2) != first


def test_mgd_with_nothing_masked_sums_squares_per_image():
    loss_of = mgd("space", 0.0)
    student, teacher = make_outputs(loss_of, COUNT, 1)
    restored = loss_of.generate[0](student[0].maps["layer1"])
    expected = (restored - teacher[0].maps["layer1"]).square().sum() / COUNT
    loss = loss_of(student, teacher, make_batch())
    assert loss.item() == pytest.approx(expected.item())


def simdis(targets: int) -> SimDis:
    torch.manual_seed(0)
    return SimDis(Shapes(6, 6, 64), targets=targets, dim=6, hidden_dim=10).train()


def without_networks(loss_of: SimDis) -> SimDis:
    loss_of.projector = loss_of.momentum_projector = nn.Identity()
    loss_of.predictors = nn.ModuleDict({name: nn.Identity() for name in loss_of.weights})
    return loss_of


def test_a_frozen_teacher_counts_twice_among_seven_targets():
    torch.manual_seed(0)
    vectors = {name: [torch.randn(COUNT, 6) for _ in range(2)] for name in ("s", "sema", "t")}
    sides = {name: [Representation(x_BD) for x_BD in views] for name, views in vectors.items()}
    student = Outputs(sides["s"], momentum=sides["sema"])
    found = without_networks(simdis(7))(student, Outputs(sides["t"]), make_batch())
    names = [f"{source}_{view}v" for source in ("s", "sema", "t", "tema") for view in "sd"][1:]
    expected = multi_target_distance(
        dict.fromkeys(names, vectors["s"]),
        vectors | {"tema": vectors["t"]},
        dict.fromkeys(names, 1),
    )
    assert len(names) == 7
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_no_target_of_simdis_gets_a_gradient():
    s1, s2 = (torch.randn(COUNT, 6, requires_grad=True) for _ in range(2))
    predictions = {"s_dv": [s1, s2.detach()]}
    loss_of = without_networks(simdis(7))
    loss_of.weights = {"s_dv": 1}
    loss_of.predictors = nn.ModuleDict({"s_dv": nn.Identity()})
    other = [Representation(torch.randn(COUNT, 6)) for _ in range(2)]
    student = Outputs([Representation(s1), Representation(s2)], momentum=other)
    loss_of(student, Outputs(other), make_batch()).backward()
    both = s1.grad.clone()
    s1.grad = None
    targets = {"s": [s1.detach(), s2.detach()]}
    multi_target_distance(predictions, targets, {"s_dv": 1}).backward()
    assert torch.allclose(both, s1.grad)


def test_the_moving_average_follows_the_projector_after_the_step():
    loss_of = simdis(7)
    assert not any(p.requires_grad for p in loss_of.momentum_projector.parameters())
    reference = momentum_copy(loss_of.projector)
    with torch.no_grad():
        for tensor in (*loss_of.projector.parameters(), *loss_of.projector.buffers()):
            tensor += 1
    before = copy.deepcopy(loss_of.momentum_projector.state_dict())
    loss_of.after_step(3, 10)
    update_momentum(loss_of.projector, reference, cosine_momentum(0.99, 3, 10))
    moved = loss_of.momentum_projector.state_dict()
    for name, expected in reference.state_dict().items():
        assert torch.allclose(moved[name], expected), name
        assert not torch.equal(moved[name], before[name]), name
    assert set(loss_of.state_dict()) >= {f"momentum_projector.{name}" for name in before}
    assert [loss_of.momentum_at(step, 10) for step in (0, 10)] == pytest.approx([0.99, 1])
