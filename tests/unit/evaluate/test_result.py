import numpy as np
import pytest

from ssdistill.errors import UserError
from ssdistill.evaluate.classification import classify
from ssdistill.evaluate.paired import paired_test
from ssdistill.evaluate.result import Result

TARGETS = np.arange(400) % 4


def result(wrong=0, targets=TARGETS, protocol="knn", judged=True, **settings):
    answers = targets.copy()
    answers[:wrong] = (answers[:wrong] + 1) % 4
    found = classify(targets, predictions=answers)
    metrics = {f"probe/{protocol}/{name}": value for name, value in found.measures.items()}
    return Result(protocol, metrics, 0.0, settings, classification=found if judged else None)


def test_a_measure_is_had_by_its_short_name():
    assert result(wrong=40)["top1"] == 90


def test_a_measure_that_is_none_names_the_nearest():
    with pytest.raises(UserError) as caught:
        result()["top-1"]
    assert "'knn' has no measure 'top-1' (did you mean 'top1'?); known: top1, " in str(caught.value)


def test_two_results_are_compared_image_by_image():
    one, other = result(wrong=10), result(wrong=50)
    answers = (r.classification.predictions for r in (one, other))
    assert one.paired(other, margin=2.0) == paired_test(TARGETS, *answers, margin=2.0)
    assert one.paired(other).verdict == "better" and other.paired(one).verdict == "worse"
    assert one.paired(one).difference == 0


def test_seeds_may_differ():
    assert result(k=20, seed=0).paired(result(k=20, seed=1)).total == 400


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"protocol": "linear"}, "'knn' cannot be compared with 'linear'"),
        ({"k": 5}, "'knn' with k=20 cannot be compared with k=5"),
        ({"targets": TARGETS[:200]}, "the same test images in the same order"),
        ({"targets": TARGETS[::-1].copy()}, "the same test images in the same order"),
        ({"judged": False}, "'knn' has no predictions by image"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, says):
    with pytest.raises(UserError, match=says):
        result(k=20).paired(result(**{"k": 20, **other}))
