"""LiDAR against its definition, and the views that it is computed on."""

import inspect
import math

import numpy as np
import pytest
import torch

from ssdistill.data.recipes import RECIPES
from ssdistill.data.views import make_view
from ssdistill.errors import UserError
from ssdistill.label_free import lidar as module
from ssdistill.label_free.collapse import ROUNDING, alignment
from ssdistill.label_free.lidar import lidar, view_embeddings, view_metrics
from ssdistill.models.representation import Representation


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(views=6, images=80, width=12, noise=0.5, seed=0):
    """Views that scatter around one point per image."""
    return gaussian(images, width, seed=seed) + noise * gaussian(
        views, images, width, seed=seed + 1
    )


def by_definition(z_VND, delta):
    """Equations 1 to 4 with sums written out and a matrix square root."""
    z = np.asarray(z_VND, dtype=np.float64)
    views, images, width = z.shape
    mean = np.array([sum(z[v, i] for v in range(views)) / views for i in range(images)])
    center = mean.mean(0)
    between = sum(np.outer(m - center, m - center) for m in mean) / (images - 1)
    within = np.zeros((width, width))
    for i in range(images):
        for v in range(views):
            within += np.outer(z[v, i] - mean[i], z[v, i] - mean[i])
    within /= images * (views - 1)
    power = np.mean(np.sum(z**2, -1))
    ridge = (delta * np.trace(within) + ROUNDING**2 * power) / width
    value, vector = np.linalg.eigh(within + ridge * np.eye(width))
    root = vector @ np.diag(value**-0.5) @ vector.T
    found = np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None)
    p = found / found.sum()
    return math.exp(-sum(x * math.log(x) for x in p if x > 0))


@pytest.mark.parametrize("delta", [1e-4, 0.1])
@pytest.mark.parametrize(
    ("views", "images", "width"), [(6, 80, 12), (3, 10, 40), (2, 2, 3), (4, 20, 1)]
)
def test_it_is_its_definition(views, images, width, delta):
    z_VND = clusters(views, images, width) * torch.linspace(1, 5, width) + 3
    assert lidar(z_VND, delta) == pytest.approx(by_definition(z_VND, delta), rel=1e-6)
    assert 1 - 1e-9 <= lidar(z_VND, delta) <= min(images - 1, width) + 1e-6


def test_the_ridge_is_small_where_nothing_needs_it():
    z_VND = clusters()
    assert lidar(z_VND, 1e-4) == pytest.approx(lidar(z_VND, 1e-8), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_scale_shift_and_rotation_change_nothing(scale):
    z_VND = clusters()
    turn_DD = torch.linalg.qr(gaussian(12, 12, seed=5).double()).Q
    moved = scale * (z_VND.double() @ turn_DD)
    assert lidar(moved) == pytest.approx(lidar(z_VND), rel=1e-5)
    assert lidar(z_VND + 7) == pytest.approx(lidar(z_VND), rel=1e-4)


def test_stretched_directions_count_by_what_they_tell_apart_and_not_by_their_length():
    """As a linear discriminant analysis, and unlike the rank of a covariance."""
    z_VND = clusters(noise=0.3)
    stretched = z_VND * torch.logspace(0, -2, 12)
    assert lidar(stretched, 1e-9) == pytest.approx(lidar(z_VND, 1e-9), rel=1e-3)


def test_directions_of_augmentation_alone_count_little():
    """What tells images apart has four directions; noise fills the other twenty-eight."""
    signal, q = torch.zeros(32), 10
    signal[:4] = 1
    z_VND = gaussian(400, 32) * signal + 0.2 * gaussian(q, 400, 32, seed=1)
    assert 4 <= lidar(z_VND) < 5
    assert lidar(gaussian(400, 32) + 0.2 * gaussian(q, 400, 32, seed=1)) > 28


def test_views_that_are_embedded_alike_leave_the_rank_of_the_images():
    mean_ND = gaussian(200, 8) * torch.tensor([3.0, 2, 1, 1, 0, 0, 0, 0])
    value_D = torch.linalg.eigvalsh(torch.cov(mean_ND.double().T)).clamp(min=0)
    p_D = value_D / value_D.sum()
    wanted = torch.special.entr(p_D).sum().exp().item()
    assert lidar(mean_ND.expand(3, -1, -1)) == pytest.approx(wanted, rel=1e-6)
    # What rounding adds to it is not taken for an effect of augmentation.
    rounded = mean_ND + 1e-7 * gaussian(3, 200, 8, seed=1)
    assert lidar(rounded) == pytest.approx(wanted, rel=1e-2)


def test_one_line_has_rank_one():
    line = gaussian(3, 50, 1, seed=2) * 0.1 + gaussian(50, 1)
    assert lidar(line * gaussian(1, 16, seed=1)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e5])
def test_one_point_has_none(value):
    constant = torch.full((3, 20, 8), value)
    assert lidar(constant) == 0
    assert lidar(constant * (1 + 1e-7 * gaussian(3, 20, 8))) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_have_no_score(value):
    z_VND = clusters()
    z_VND[1, 2, 3] = value
    assert math.isnan(lidar(z_VND))


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 1, 3), (5, 3), (2, 2, 0)])
def test_too_few_views_or_images_are_named(shape):
    with pytest.raises(UserError, match="two or more views and images"):
        lidar(torch.zeros(shape))


def pixels(x_BCHW):
    return Representation(x_BCHW.flatten(1) - 0.5)


@pytest.fixture
def pictures(make_store):
    """Keyword arguments of the views of every third image of a store."""
    store, shown = make_store(30), slice(0, 30, 3)
    return {
        "images_NHWC": store.images[shown],
        "index_N": torch.arange(30)[shown],
        "recipe": RECIPES["strong"],
        "size": 16,
    }


def test_views_are_those_of_the_pictures_own_indices(pictures):
    found = view_embeddings(pixels, **pictures, views=(0, 4), batch_size=3)
    images_BHWC = torch.from_numpy(pictures["images_NHWC"].copy())
    for z_ND, view in zip(found, (0, 4), strict=True):
        draw = {"seed": 0, "epoch": 0, "index_B": pictures["index_N"], "view": view, "size": 16}
        x_NCHW = make_view(images_BHWC, pictures["recipe"], **draw)
        torch.testing.assert_close(z_ND, x_NCHW.flatten(1) - 0.5)


def test_encoding_views_leaves_encoder_and_generators_alone(pictures, make_encoder):
    encoder = make_encoder().train()
    encoder.net.bn1.eval()
    modes = [module.training for module in encoder.modules()]
    state = {name: t.clone() for name, t in encoder.state_dict().items()}
    before = torch.get_rng_state()
    whole = view_embeddings(encoder, **pictures, views=range(3))
    parts = view_embeddings(encoder, **pictures, views=range(3), batch_size=4)
    torch.testing.assert_close(whole, parts)
    assert whole.shape == (3, 10, 16) and not whole.is_inference() and not whole.requires_grad
    assert [module.training for module in encoder.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, state[name]) for name, t in encoder.state_dict().items())


@pytest.mark.parametrize("most", [1000, 5])
def test_the_label_free_metrics_share_their_first_views(pictures, monkeypatch, most):
    monkeypatch.setattr(module, "IMAGES", most)
    drawn = []
    monkeypatch.setattr(
        module, "make_view", lambda x, r, **kw: drawn.append(len(x)) or make_view(x, r, **kw)
    )
    found = view_metrics(pixels, **pictures)
    assert sum(drawn) == 2 * 10 + (module.VIEWS - 2) * min(10, most)
    z_VND = view_embeddings(pixels, **pictures, views=range(module.VIEWS))
    few = slice(None, None, 1 if most == 1000 else 2)
    assert found == {
        "collapse/alignment": pytest.approx(alignment(z_VND[0], z_VND[1])),
        "collapse/lidar": pytest.approx(lidar(z_VND[:, few])),
    }


def test_it_cannot_be_given_labels():
    for function in (lidar, view_embeddings, view_metrics):
        names = inspect.signature(function).parameters
        assert not any(word in name for name in names for word in ("label", "target", "class"))
