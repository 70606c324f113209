"""Classification metrics against scikit-learn's, and against explicit formulas."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from ssdistill.errors import UserError
from ssdistill.evaluate.classification import calibration_error, classify

CASES = {
    "even": {"share_K": [1] * 7},
    "imbalanced": {"share_K": [80, 10, 5, 3, 1, 1]},
    "two classes": {"share_K": [3, 1]},
    "five classes": {"share_K": [1] * 5},
    "thirty classes": {"share_K": [1] * 30},
    "a class absent from the test images": {"share_K": [4, 0, 3, 3, 2, 0, 1]},
    "a class never answered": {"share_K": [2, 1, 2, 1, 1, 1], "silent": 3},
    "absent and never answered": {"share_K": [2, 1, 2, 0, 1, 1], "silent": 3},
    "few images": {"share_K": [1] * 8, "images": 11},
}


@pytest.fixture(params=CASES, ids=CASES)
def case(request):
    """True labels, and probabilities that know a little about them."""
    share_K, silent, images = (
        CASES[request.param].get(key, default)
        for key, default in (("share_K", None), ("silent", None), ("images", 400))
    )
    rng = np.random.default_rng(len(share_K))
    targets = rng.choice(len(share_K), images, p=np.array(share_K) / sum(share_K))
    logits_NK = rng.normal(size=(images, len(share_K)))
    logits_NK[np.arange(images), targets] += 1.5
    if silent is not None:
        logits_NK[:, silent] = -9
    e_NK = np.exp(logits_NK)
    return targets, e_NK / e_NK.sum(1, keepdims=True)


def test_every_number_is_scikit_learns(case):
    targets, probabilities_NK = case
    answers, labels = probabilities_NK.argmax(1), np.arange(probabilities_NK.shape[1])
    found = classify(targets, probabilities_NK=probabilities_NK)
    assert (found.predictions == answers).all() and (found.targets == targets).all()
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(targets, answers))
    assert (found.confusion_KK == metrics.confusion_matrix(targets, answers, labels=labels)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = metrics.balanced_accuracy_score(targets, answers)
        by_class = metrics.precision_recall_fscore_support(
            targets, answers, labels=labels, zero_division=np.nan
        )
    assert found.balanced_accuracy == pytest.approx(100 * balanced)
    wanted = (100 * by_class[0], 100 * by_class[1], 100 * by_class[2])
    by_name = (found.precision_K, found.recall_K, found.f1_K)
    for values_K, wanted_K in zip(by_name, wanted, strict=True):
        np.testing.assert_allclose(values_K, wanted_K)
    averaged = {"average": "macro", "zero_division": 0}
    assert found.macro_f1 == pytest.approx(100 * metrics.f1_score(targets, answers, **averaged))
    precision = 100 * metrics.precision_score(targets, answers, **averaged)
    assert found.macro_precision == pytest.approx(precision)


def test_top5_is_scikit_learns_without_ties(case):
    targets, probabilities_NK = case
    found = classify(targets, probabilities_NK=probabilities_NK)
    if probabilities_NK.shape[1] <= 5:
        assert found.top5 == 100
        return
    labels = np.arange(probabilities_NK.shape[1])
    wanted = metrics.top_k_accuracy_score(targets, probabilities_NK, k=5, labels=labels)
    assert found.top5 == pytest.approx(100 * wanted)


def test_of_equal_probabilities_the_first_class_is_the_answer_and_comes_first():
    even_NK = np.full((12, 12), 1 / 12)
    found = classify(np.arange(12), probabilities_NK=even_NK)
    assert (found.predictions == 0).all()
    assert found.top1 == pytest.approx(100 / 12) and found.top5 == pytest.approx(500 / 12)


def test_a_class_without_any_probability_is_not_among_the_five():
    """As with neighbors that vote for one class: which come next is not known."""
    probabilities_NK = np.zeros((10, 10))
    probabilities_NK[:, 7] = 1
    found = classify(np.arange(10), probabilities_NK=probabilities_NK)
    assert found.top1 == found.top5 == 10


def slow_calibration_error(probabilities_NK, targets):
    total = 0.0
    for low in range(15):
        rows = [
            (max(row), int(np.argmax(row)) == target)
            for row, target in zip(probabilities_NK.tolist(), targets, strict=True)
            if low / 15 < max(row) <= (low + 1) / 15
        ]
        if rows:
            confidence, hit = np.mean(rows, axis=0)
            total += len(rows) / len(targets) * abs(hit - confidence)
    return 100 * total


def test_the_calibration_error_is_the_formula(case):
    targets, probabilities_NK = case
    wanted = slow_calibration_error(probabilities_NK, targets)
    found = classify(targets, probabilities_NK=probabilities_NK)
    assert found.calibration_error == pytest.approx(wanted)


@pytest.mark.parametrize("confidence", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_bin_below(confidence):
    """Guo et al., arXiv:1706.04599: bins are (low, high]; fractions of neighbors lie on edges."""

    def row(share):
        return [share] + [(1 - share) / 9] * 9

    below = confidence - 0.01
    probabilities_NK, true_N = np.array([row(confidence), row(below)]), np.array([0, 1])
    # In one bin a hit and a miss make up for each other; in two they would not.
    wanted = 100 * abs((1 - confidence) - below) / 2
    assert calibration_error(probabilities_NK, true_N) == pytest.approx(wanted)


def test_calibration_of_the_sure_and_of_the_honest():
    sure_NK = np.eye(4)[np.zeros(20, int)]
    half_right = np.repeat([0, 1], 10)
    assert calibration_error(sure_NK, half_right) == pytest.approx(50)
    assert calibration_error(sure_NK, np.zeros(20, int)) == 0
    honest_NK = np.tile([0.75, 0.25], (20, 1))
    assert calibration_error(honest_NK, np.repeat([0, 1], [15, 5])) == pytest.approx(0, abs=1e-9)


def test_predictions_alone_give_all_but_top5_and_calibration(case):
    targets, probabilities_NK = case
    both = classify(targets, probabilities_NK=probabilities_NK)
    alone = classify(targets, predictions=both.predictions, classes=both.classes)
    assert alone.top5 is None and alone.calibration_error is None
    assert alone.measures.keys() == both.measures.keys() - {"top5", "calibration_error"}
    assert alone.measures == {name: both.measures[name] for name in alone.measures}
    # Classes that neither occur nor are answered change no mean.
    assert classify(targets, predictions=both.predictions).measures == alone.measures


def test_labels_may_be_any_numbers_in_any_order():
    rng = np.random.default_rng(0)
    targets, answers = rng.integers(0, 4, (2, 200))
    plain = classify(targets, predictions=answers)
    label_K = np.array([40, 7, 300, 12])
    probabilities_NK = np.eye(4)[answers]
    renamed = classify(label_K[targets], probabilities_NK=probabilities_NK, classes=label_K)
    assert (renamed.predictions == label_K[answers]).all()
    assert (renamed.confusion_KK == plain.confusion_KK).all()
    assert renamed.top1_stderr == pytest.approx(
        100 * ((plain.top1 / 100) * (1 - plain.top1 / 100) / 200) ** 0.5
    )


@pytest.mark.parametrize(("shift", "top1"), [(0, 100), (1, 0)])
def test_all_right_and_all_wrong(shift, top1):
    targets = np.arange(30) % 3
    found = classify(targets, predictions=(targets + shift) % 3)
    assert found.top1 == found.balanced_accuracy == found.macro_f1 == top1
    assert found.top1_low <= top1 <= found.top1_high
    # 30 images do not prove that all others are answered alike.
    assert found.top1_high - found.top1_low == pytest.approx(100 - 100 * 0.05 ** (1 / 30))
    assert found.balanced_accuracy_high - found.balanced_accuracy_low > 5


def test_intervals_hold_their_values_and_come_again(case):
    targets, probabilities_NK = case
    found = classify(targets, probabilities_NK=probabilities_NK)
    assert found.top1_low < found.top1 < found.top1_high
    ends = found.balanced_accuracy_low, found.balanced_accuracy_high
    assert ends[0] < found.balanced_accuracy < ends[1]
    again = classify(targets, probabilities_NK=probabilities_NK)
    assert ends == (again.balanced_accuracy_low, again.balanced_accuracy_high)


def test_rows_by_class_hold_names_and_none_for_what_is_not_known():
    found = classify([4, 4, 6], predictions=[4, 5, 5], class_names=tuple("abcdefg"))
    assert found.class_names == ("e", "f", "g")
    four, five, six = found.by_class()
    assert four == {
        "class": 4, "name": "e", "images": 2, "precision": 100, "recall": 50,
        "f1": pytest.approx(200 / 3),
    }  # fmt: skip
    assert (five["recall"], five["precision"], five["f1"], five["images"]) == (None, 0, 0, 0)
    assert (six["recall"], six["precision"], six["f1"]) == (0, None, 0)
    assert [row["name"] for row in classify([9], predictions=[9]).by_class()] == ["9"]


def test_names_that_do_not_reach_are_left_out():
    assert classify([0, 5], predictions=[0, 5], class_names=("a", "b")).class_names is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"targets": [], "predictions": []}, "test labels must be a non-empty integer array"),
        ({"targets": [0.5], "predictions": [0]}, r"of shape \(N,\), got float64 \(1,\)"),
        ({"targets": [[0]], "predictions": [0]}, r"got int64 \(1, 1\)"),
        ({"targets": [0]}, "exactly one of probabilities and predictions .neither was passed"),
        ({"targets": [0], "predictions": [0], "probabilities_NK": [[1]]}, "both were passed"),
        ({"targets": [0, 1], "predictions": [0]}, "1 predictions for 2 test labels"),
        ({"targets": [0], "predictions": [3], "classes": [0, 1]}, ".*unknown classes: 3"),
        ({"targets": [0, 7, 9], "probabilities_NK": [[1, 0]] * 3}, "labels .* classes: 7, 9"),
        ({"targets": [0], "probabilities_NK": [1.0]}, r"non-empty array of shape \(N, K\)"),
        ({"targets": [0], "probabilities_NK": [[np.nan, 1]]}, "of 1 of 1 images are .* not finite"),
        ({"targets": [0, 0], "probabilities_NK": [[0.5, 0.5], [3, 4]]}, "of 1 of 2 images"),
        ({"targets": [0], "probabilities_NK": [[1.5, -0.5]]}, "negative"),
        ({"targets": [0], "probabilities_NK": [[0.5, 0.5]], "classes": [0]}, "1 classes, but 2"),
        ({"targets": [0], "predictions": [0], "classes": [0, 0]}, "label twice"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        classify(**arguments)
