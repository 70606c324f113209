import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssdistill.errors import UserError
from ssdistill.evaluate.low_shot import draw_labels, low_shot_probe


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
    classes_K = torch.arange(10)
    index_PN = draw_labels(target_N, classes_K, 5, 4, seed=0)
    for row in index_PN:
        assert torch.bincount(target_N[row]).tolist() == [5] * 10
        assert len(row.unique()) == 50
    assert not torch.equal(index_PN[0], index_PN[1])
    assert torch.equal(index_PN, draw_labels(target_N, classes_K, 5, 4, seed=0))
    assert not torch.equal(index_PN, draw_labels(target_N, classes_K, 5, 4, seed=1))


def test_more_labels_help(digits):
    few, many = (low_shot_probe(*digits, labels_per_class=n).top1 for n in (1, 20))
    assert few + 10 < many


def test_class_with_too_few_labels_is_named(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    keep_N = (label_N != 7) | (np.cumsum(label_N == 7) <= 3)
    with pytest.raises(UserError, match="class 7 has 3 training labels"):
        low_shot_probe(x_ND[keep_N], label_N[keep_N], test_ND, test_label_N)


def test_one_draw_has_no_spread(digits):
    with pytest.raises(UserError, match="draws >= 2"):
        low_shot_probe(*digits, draws=1)
