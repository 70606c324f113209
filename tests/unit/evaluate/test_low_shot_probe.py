import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols.low_shot import (
    LowShot,
    draw_labels,
    labels_to_draw,
    low_shot_probe,
)
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.representation import Representation


@pytest.fixture(scope="module")
def digits():
    x_ND, label_N = load_digits(return_X_y=True)
    return x_ND[:1200], label_N[:1200], x_ND[1200:], label_N[1200:]


def test_every_draw_is_scikit_learns_default_regression(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    probe = low_shot_probe(*digits, draws=3)
    mean, std = x_ND.mean(0), np.where(x_ND.std(0) > 0, x_ND.std(0), 1)
    for rows, top1 in zip(probe.indices.numpy(), probe.top1_by_draw, strict=True):
        model = LogisticRegression(tol=1e-8, max_iter=2000)
        model.fit(((x_ND - mean) / std)[rows], label_N[rows])
        assert abs(top1 - 100 * model.score((test_ND - mean) / std, test_label_N)) <= 0.2


def test_mean_and_std_are_over_draws(digits):
    probe = low_shot_probe(*digits)
    assert len(probe.top1_by_draw) == 10
    assert probe.top1 == pytest.approx(np.mean(probe.top1_by_draw))
    assert probe.std == pytest.approx(np.std(probe.top1_by_draw, ddof=1))
    assert probe.std > 0
    assert probe.metrics()["probe/low_shot/top1"] == probe.top1


def test_draws_are_balanced_distinct_and_seeded(digits):
    target_N = torch.from_numpy(digits[1])
    quota_K = torch.full((10,), 5)
    index_PN = draw_labels(target_N, quota_K, 4, seed=0)
    for row in index_PN:
        assert torch.bincount(target_N[row]).tolist() == [5] * 10
        assert len(row.unique()) == 50
    assert not torch.equal(index_PN[0], index_PN[1])
    assert torch.equal(index_PN, draw_labels(target_N, quota_K, 4, seed=0))
    assert not torch.equal(index_PN, draw_labels(target_N, quota_K, 4, seed=1))


def test_more_labels_help(digits):
    few, many = (low_shot_probe(*digits, labels_per_class=n).top1 for n in (1, 20))
    assert few + 10 < many


def test_class_with_too_few_labels_is_named(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    keep_N = (label_N != 7) | (np.cumsum(label_N == 7) <= 3)
    with pytest.raises(UserError, match="class 7 has 3 training labels"):
        low_shot_probe(x_ND[keep_N], label_N[keep_N], test_ND, test_label_N)


def test_one_draw_has_no_spread(digits):
    with pytest.raises(UserError, match="draws=1: must be at least 2"):
        low_shot_probe(*digits, draws=1)


@pytest.mark.parametrize(("fraction", "quota"), [(0.01, [10, 1, 1]), (0.1, [100, 5, 1])])
def test_fraction_is_of_every_class_and_at_least_one(fraction, quota):
    target_N = torch.repeat_interleave(torch.arange(3), torch.tensor([1000, 51, 2]))
    target_N = target_N[torch.randperm(1053, generator=torch.Generator().manual_seed(0))]
    quota_K = labels_to_draw(target_N, torch.arange(3), None, fraction)
    assert quota_K.tolist() == quota
    for row in draw_labels(target_N, quota_K, 2, seed=0):
        assert torch.bincount(target_N[row]).tolist() == quota and len(row.unique()) == sum(quota)


@pytest.mark.parametrize("kwargs", [{"labels_per_class": 2}, {"fraction": 0.02}])
def test_draws_solved_one_by_one_are_those_solved_together(digits, kwargs):
    together = low_shot_probe(*digits, draws=3, **kwargs)
    alone = low_shot_probe(*digits, draws=3, together=0, **kwargs)
    assert torch.equal(alone.indices, together.indices)
    np.testing.assert_allclose(alone.top1_by_draw, together.top1_by_draw, atol=0.2)


def test_a_tenth_is_scikit_learns_default_regression(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    probe = low_shot_probe(*digits, fraction=0.1, draws=2)
    assert probe.labels == sum(round(0.1 * n) for n in np.bincount(label_N))
    mean, std = x_ND.mean(0), np.where(x_ND.std(0) > 0, x_ND.std(0), 1)
    rows = probe.indices[0].numpy()
    model = LogisticRegression(tol=1e-8, max_iter=2000)
    model.fit(((x_ND - mean) / std)[rows], label_N[rows])
    own = 100 * model.score((test_ND - mean) / std, test_label_N)
    assert abs(probe.top1_by_draw[0] - own) <= 0.2


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"labels_per_class": 5, "fraction": 0.1}, "labels_per_class=5 and fraction=0.1"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"labels_per_class": 0}, "at least 1"),
    ],
)
def test_impossible_numbers_of_labels_are_refused(digits, kwargs, says):
    with pytest.raises(UserError, match=says):
        low_shot_probe(*digits, **kwargs)


def gray(count, seed):
    rng = np.random.default_rng(seed)
    label_N = np.arange(count) % 4
    mean_NHWC = (40 + 50 * label_N)[:, None, None, None] + rng.normal(0, 15, (count, 4, 4, 3))
    return LabeledImages(mean_NHWC.clip(0, 255).astype(np.uint8), label_N)


@pytest.mark.parametrize(
    ("protocol", "name", "draws", "labels"),
    [
        (LowShot(), "low_shot", 10, 20),
        (LowShot(preset="1pct"), "low_shot_1pct", 5, 8),
        (LowShot(preset="10pct"), "low_shot_10pct", 5, 80),
        (LowShot(fraction=0.05, draws=2), "low_shot", 2, 40),
    ],
)
def test_presets_name_what_they_draw(protocol, name, draws, labels):
    def encode(x_BCHW):
        return Representation(x_BCHW.flatten(1))

    result = protocol.run(Subject(encode, gray(800, 0), gray(40, 1), progress=False))
    assert set(result.metrics) == {f"probe/{name}/top1{end}" for end in ("", "_std", "_stderr")}
    assert len(result.details["top1_by_draw"]) == draws
    assert result.details["labels"] == labels
    assert result["top1_stderr"] == pytest.approx(result["top1_std"] / draws**0.5)


def test_a_preset_says_how_many_labels():
    with pytest.raises(UserError, match=r"preset=.* and fraction=.* are set; set only one of them"):
        LowShot(preset="1pct", fraction=0.5)
    assert LowShot(preset="1pct", draws=3).draws == 3
