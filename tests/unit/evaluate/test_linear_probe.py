import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssdistill.errors import UserError
from ssdistill.evaluate.probes import logistic
from ssdistill.evaluate.probes.logistic import fit_logistic
from ssdistill.evaluate.probes.strength import Folds, stratified_split
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.label_free import rows as rows_module
from ssdistill.label_free.rows import Rows, standardization


@pytest.fixture(scope="module")
def digits():
    x_ND, label_N = load_digits(return_X_y=True)
    return x_ND[:1200], label_N[:1200], x_ND[1200:], label_N[1200:]


def correlated(num_rows=3000, width=24, num_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.logspace(0, -2, width)
    z_ND = rng.normal(size=(num_rows, width))
    score_NK = z_ND @ rng.normal(size=(width, num_classes)) + rng.gumbel(
        size=(num_rows, num_classes)
    )
    x_ND = np.maximum((z_ND * scale) @ rng.normal(size=(width, width)) + 1, 0)
    return x_ND[:2000], score_NK.argmax(1)[:2000], x_ND[2000:], score_NK.argmax(1)[2000:]


def by_scikit_learn(data, strength):
    x_ND, label_N, test_ND, test_label_N = data
    mean, std = x_ND.mean(0), x_ND.std(0)
    std = np.where(std > 0, std, 1)
    c = 1 / (len(x_ND) * strength)
    model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit((x_ND - mean) / std, label_N)
    return 100 * model.score((test_ND - mean) / std, test_label_N), model.coef_, std


@pytest.mark.parametrize("strength", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("name", ["digits", "correlated", "a hundred classes"])
def test_accuracy_and_coefficients_are_scikit_learns(name, strength, digits):
    data = (
        digits if name == "digits" else correlated(num_classes=7 if name == "correlated" else 100)
    )
    expected_top1, expected_KD, std_D = by_scikit_learn(data, strength)
    probe = linear_probe(*data, strengths=[strength])
    assert abs(probe.top1 - expected_top1) <= 0.2
    gap = np.abs(probe.weight_KD.numpy() * std_D - expected_KD).max()
    assert gap <= 5e-3 * np.abs(expected_KD).max()


def test_two_classes_are_the_binomial_model_at_twice_the_c(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    data = x_ND, label_N % 2, test_ND, test_label_N % 2
    expected_top1, expected_D, std_D = by_scikit_learn(data, 1e-2 / 2)
    probe = linear_probe(*data, strengths=[1e-2])
    assert abs(probe.top1 - expected_top1) <= 0.2
    difference_D = (probe.weight_KD[1] - probe.weight_KD[0]).numpy() * std_D
    assert np.abs(difference_D - expected_D[0]).max() <= 5e-3 * np.abs(expected_D).max()


def test_weight_and_bias_are_for_raw_features(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    probe = linear_probe(x_ND + 50, label_N + 3, test_ND + 50, test_label_N + 3)
    raw_NK = torch.tensor(test_ND + 50).float() @ probe.weight_KD.T + probe.bias_K
    by_hand = probe.classes[raw_NK.argmax(1).numpy()]
    assert (by_hand == probe.predictions).all()
    assert probe.top1 == pytest.approx(100 * np.mean(by_hand == test_label_N + 3))


@pytest.mark.parametrize("keep", [2**30, 0])
def test_problems_solved_together_are_the_problems_solved_alone(digits, keep):
    x_ND, label_N = torch.tensor(digits[0]).float(), torch.tensor(digits[1])
    own_3N = torch.stack([torch.randperm(len(x_ND), generator=seeded(i))[:600] for i in range(3)])
    strength_P = torch.tensor([1.0, 1e-1, 1e-2])

    def fit(index_GN, strength_P):
        rows = Rows(x_ND, *standardization(x_ND), index_GN, keep=keep)
        return fit_logistic(rows, label_N[index_GN], 10, strength_P, tolerance=1e-5).theta_PKE

    shared, own = fit(own_3N[:1], strength_P), fit(own_3N, strength_P)
    for p in range(3):
        assert torch.allclose(shared[p], fit(own_3N[:1], strength_P[[p]])[0], atol=1e-3)
        assert torch.allclose(own[p], fit(own_3N[[p]], strength_P[[p]])[0], atol=1e-3)


def test_gradient_of_the_solution_vanishes(digits):
    x_ND, label_N = torch.tensor(digits[0]).float(), torch.tensor(digits[1])
    mean_D, scale_D = standardization(x_ND)
    rows = Rows(x_ND, mean_D, scale_D)
    fit = fit_logistic(rows, label_N[None], 10, torch.tensor([1e-3]), tolerance=1e-5)
    theta_KE = fit.theta_PKE[0].clone().requires_grad_()
    x_NE = torch.nn.functional.pad((x_ND - mean_D) / scale_D, (0, 1), value=1.0).double()
    loss = torch.nn.functional.cross_entropy(x_NE @ theta_KE.T, label_N)
    (loss + 0.5e-3 * theta_KE[:, :-1].square().sum()).backward()
    assert theta_KE.grad.abs().max() < 2e-5


@pytest.mark.parametrize(("pairs_that_fit", "kept"), [(0, 5), (7, 7), (1000, 20)])
def test_lbfgs_remembers_twenty_steps_or_what_fits_but_five(
    digits, monkeypatch, pairs_that_fit, kept
):
    x_ND, label_N = torch.tensor(digits[0]).float(), torch.tensor(digits[1])
    # A step and a change of the gradient, 8 bytes for each of 10 x (64 + 1) numbers.
    monkeypatch.setattr(logistic, "MEMORY_BYTES", pairs_that_fit * 2 * 8 * 10 * 65)
    lengths, by_inverse = [], logistic._Problem.times_inverse

    def times_inverse(self, slope, memory, gain_P):
        lengths.append(len(memory))
        return by_inverse(self, slope, memory, gain_P)

    monkeypatch.setattr(logistic._Problem, "times_inverse", times_inverse)
    rows = Rows(x_ND, *standardization(x_ND))
    fit = fit_logistic(rows, label_N[None], 10, torch.tensor([1e-5]), max_steps=30, tolerance=0.0)
    assert lengths == [min(step, kept) for step in range(fit.steps)] and fit.steps > kept


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def same_fit(probe, other):
    gap = (probe.weight_KD - other.weight_KD).abs().max() / other.weight_KD.abs().max()
    return probe.strength == other.strength and gap < 1e-3 and abs(probe.top1 - other.top1) <= 0.2


def test_rows_made_again_for_every_pass_give_the_same_fit(digits, monkeypatch):
    grids = [1e-1, 1e-2], [1e-2]
    kept = [linear_probe(*digits, strengths=grid) for grid in grids]
    monkeypatch.setattr(rows_module, "PIECE", 64 * 100)
    monkeypatch.setattr(Rows.__init__, "__defaults__", (None, 0))
    for grid, probe in zip(grids, kept, strict=True):
        assert same_fit(linear_probe(*digits, strengths=grid), probe)


def test_mapped_features_give_the_same_bits(digits, tmp_path):
    np.save(tmp_path / "x.npy", digits[0].astype(np.float32))
    mapped = linear_probe(np.load(tmp_path / "x.npy", mmap_mode="c"), *digits[1:])
    held = linear_probe(digits[0].astype(np.float32), *digits[1:])
    assert torch.equal(mapped.weight_KD, held.weight_KD)
    assert mapped.held_out_top1 == held.held_out_top1


def imbalanced():
    x_ND, label_N, test_ND, test_label_N = correlated(5000, 16, 4)
    rare = np.isin(label_N, [1, 2]) & (np.arange(len(label_N)) % 20 != 0)
    return x_ND[~rare], label_N[~rare], test_ND, test_label_N


def collinear(digits):
    mix = np.random.default_rng(1).normal(size=(64, 30))

    def widen(z_ND):
        return np.concatenate([z_ND, z_ND @ mix, z_ND[:, :9] * 3], 1)

    x_ND, label_N, test_ND, test_label_N = digits
    return widen(x_ND), label_N, widen(test_ND), test_label_N


@pytest.mark.parametrize("name", ["imbalanced", "collinear"])
def test_hard_data_are_fitted_as_by_scikit_learn(name, digits):
    """Coefficients within 1 % of the largest: the penalty makes them unique."""
    data = imbalanced() if name == "imbalanced" else collinear(digits)
    expected_top1, expected_KD, std_D = by_scikit_learn(data, 1e-3)
    probe = linear_probe(*data, strengths=[1e-3])
    assert abs(probe.top1 - expected_top1) <= 0.2
    gap = np.abs(probe.weight_KD.numpy() * std_D - expected_KD).max()
    assert gap <= 1e-2 * np.abs(expected_KD).max()


def test_best_strength_at_an_end_is_warned_of(caplog):
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 2, 1200)
    x_ND = rng.normal(size=(1200, 400))
    x_ND[:, 0] += label_N
    data = x_ND[:800], label_N[:800], x_ND[800:], label_N[800:]
    weak = linear_probe(*data, strengths=[1.0, 1e-6], holdout=0.5)
    assert weak.held_out_top1[1.0] > weak.held_out_top1[1e-6]
    assert "strongest" in weak.warning and "widen evaluate.linear.strengths" in weak.warning
    assert weak.warning in caplog.text
    caplog.clear()
    enough = linear_probe(*data, strengths=[1e5, 1.0, 1e-6], holdout=0.5)
    assert enough.strength == 1.0
    assert enough.warning is None and not caplog.text
    assert linear_probe(*data, strengths=[1e-2]).warning is None


@pytest.mark.parametrize("offset", [0, 1000])
def test_standardization_of_pieces_is_that_of_the_whole(offset, monkeypatch):
    monkeypatch.setattr(rows_module, "PIECE", 50)
    x_ND = np.random.default_rng(0).gamma(2, size=(999, 5)) * [1, 5, 0.1, 1, 1] + offset
    x_ND = np.concatenate([np.sort(x_ND, 0), np.full((999, 1), 7.3)], 1).astype(np.float32)
    mean_D, scale_D = standardization(torch.from_numpy(x_ND))
    exact = x_ND.astype(np.float64)
    np.testing.assert_allclose(mean_D, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale_D[:-1], exact.std(0)[:-1], rtol=1e-4)
    assert scale_D[-1] == 1


def test_a_deviation_of_a_few_roundings_of_the_mean_is_measured(monkeypatch):
    monkeypatch.setattr(rows_module, "PIECE", 50)
    x_ND = np.random.default_rng(0).normal(1000, 0.002, (990, 5)).astype(np.float32)
    _, scale_D = standardization(torch.from_numpy(x_ND))
    np.testing.assert_allclose(scale_D, x_ND.astype(np.float64).std(0), rtol=1e-4)


def test_strength_does_not_depend_on_the_test_split(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    noise_ND = np.random.default_rng(0).normal(size=test_ND.shape)
    real = linear_probe(*digits)
    noisy = linear_probe(x_ND, label_N, noise_ND, np.roll(test_label_N, 1))
    assert noisy.strength == real.strength
    assert noisy.held_out_top1 == real.held_out_top1
    assert torch.equal(noisy.weight_KD, real.weight_KD)
    assert noisy.top1 < 40 < 80 < real.top1


def test_strong_penalty_is_chosen_where_features_are_mostly_noise():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 2, 400)
    x_ND = rng.normal(size=(400, 150))
    x_ND[:, 0] += 1.5 * label_N
    probe = linear_probe(
        x_ND[:200],
        label_N[:200],
        x_ND[200:],
        label_N[200:],
        holdout=0.2,
        strengths=[1.0, 1e-1, 1e-6],
    )
    assert probe.strength > 1e-6
    assert probe.held_out_loss[probe.strength] == min(probe.held_out_loss.values())


def test_accuracy_on_held_out_labels_does_not_choose():
    """Two strengths may differ in the answers to a few labels: other folds, another strength."""
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 4, 700)
    x_ND = rng.normal(size=(4, 32))[label_N] + 3 * rng.normal(size=(700, 32))
    chosen, by_accuracy = set(), set()
    for seed in range(5):
        probe = linear_probe(
            x_ND[:600], label_N[:600], x_ND[600:], label_N[600:], folds=1, seed=seed
        )
        chosen.add(probe.strength)
        by_accuracy.add(max(probe.held_out_top1, key=probe.held_out_top1.get))
    assert len(chosen) < len(by_accuracy)


def test_same_input_gives_the_same_bits(digits):
    first, second = linear_probe(*digits), linear_probe(*digits)
    assert torch.equal(first.weight_KD, second.weight_KD)
    assert first.held_out_top1 == second.held_out_top1


def test_reports_counts_errors_and_names(digits):
    probe = linear_probe(*digits)
    share = probe.top1 / 100
    assert (probe.n_train, probe.n_test) == (1200, 597)
    assert probe.standard_error == pytest.approx(100 * math.sqrt(share * (1 - share) / 597))
    assert probe.top1 <= probe.top5 <= 100
    assert probe.metrics() == {"probe/linear/top1": probe.top1, "probe/linear/top5": probe.top5}
    assert probe.protocol == "linear"


def test_top5_is_full_with_few_classes(digits):
    x_ND, label_N, test_ND, test_label_N = digits
    assert linear_probe(x_ND, label_N % 3, test_ND, test_label_N % 3).top5 == 100


def test_constant_and_duplicated_features_do_no_harm(digits):
    x_ND, label_N, test_ND, test_label_N = digits

    def widen(z_ND):
        return np.concatenate([z_ND, z_ND, np.full((len(z_ND), 3), 7.3)], 1)

    probe = linear_probe(widen(x_ND), label_N, widen(test_ND), test_label_N)
    assert probe.top1 > 90


def test_split_is_stratified_and_spares_single_labels():
    target_N = torch.tensor([0] * 100 + [1] * 20 + [2] * 2 + [3])
    held_N = stratified_split(target_N[torch.randperm(123)], 0.1, seed=0)
    assert held_N.sum() == 10 + 2 + 1
    held_N = stratified_split(target_N, 0.1, seed=0)
    assert torch.bincount(target_N[held_N], minlength=4).tolist() == [10, 2, 1, 0]
    assert not torch.equal(held_N, stratified_split(target_N, 0.1, seed=1))


def test_folds_hold_out_every_label_once():
    target_N = torch.tensor([0] * 100 + [1] * 20 + [2] * 12)[torch.randperm(132)]
    held_FN = torch.stack([stratified_split(target_N, 0.25, 3, fold) for fold in range(4)])
    assert (held_FN.sum(0) == 1).all()
    assert (held_FN.sum(1) == 25 + 5 + 3).all()


@pytest.mark.parametrize(("rows", "folds"), [(50_000, 1), (20_000, 1), (5000, 4), (300, 10)])
def test_few_labels_are_held_out_in_more_folds(rows, folds):
    assert Folds(0.1, None, 0).enough(rows) == folds


def test_choice_of_folds_is_that_of_each_of_them_alone(digits):
    x_ND, label_N, _, _ = digits
    grid = [1.0, 1e-2, 1e-3]
    target_N = torch.as_tensor(label_N)
    together = linear_probe(*digits, strengths=grid, holdout=0.2, folds=3)
    alone = []
    for fold in range(3):
        held_N = stratified_split(target_N, 0.2, 0, fold).numpy()
        # Standardized as a whole: the probe sees all features, the labels of a part.
        z_ND = (x_ND - x_ND.mean(0)) / np.where(x_ND.std(0) > 0, x_ND.std(0), 1)
        fitted, asked = (z_ND[~held_N], label_N[~held_N]), (z_ND[held_N], label_N[held_N])
        by_grid = []
        for strength in grid:
            c = 1 / (len(fitted[0]) * strength)
            model = LogisticRegression(C=c, tol=1e-6, max_iter=5000).fit(*fitted)
            by_grid.append(100 * model.score(*asked))
        alone.append(by_grid)
    assert list(together.held_out_top1) == grid
    assert together.held_out == sum(
        int(stratified_split(target_N, 0.2, 0, fold).sum()) for fold in range(3)
    )
    np.testing.assert_allclose(list(together.held_out_top1.values()), np.mean(alone, 0), atol=0.2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_labels": np.zeros(1200, int)}, "a single class"),
        ({"train_labels": None}, "training labels are missing"),
        ({"test_labels": None}, "test labels are missing"),
        ({"test_labels": np.full(597, 11)}, "classes without training images: 11"),
        ({"train_labels": np.zeros(7, int)}, "7 labels for 1200"),
        ({"train_labels": np.zeros(1200)}, "one integer per image"),
        ({"train_ND": np.full((1200, 64), np.nan)}, "NaN or infinite values in 1200"),
        ({"test_ND": np.zeros((597, 5))}, "differ in width: 64 and 5"),
        ({"test_ND": np.zeros((0, 64))}, "non-empty"),
        ({"strengths": [0.0]}, "positive"),
        ({"holdout": 1.0}, "holdout"),
        ({"folds": 11}, "folds=11: must be between 1 and 10 with holdout=0.1"),
    ],
)
def test_mistakes_are_named(change, says, digits):
    names = ("train_ND", "train_labels", "test_ND", "test_labels")
    with pytest.raises(UserError, match=says):
        linear_probe(**{**dict(zip(names, digits, strict=True)), **change})


def test_one_label_per_class_needs_a_single_strength():
    x_ND, label_N = np.eye(4), np.arange(4)
    with pytest.raises(UserError, match="single strength"):
        linear_probe(x_ND, label_N, x_ND, label_N)
    assert linear_probe(x_ND, label_N, x_ND, label_N, strengths=[1e-2]).top1 == 100
