"""The base class of protocols: names, presets, and how results are named and timed."""

from typing import ClassVar

import numpy as np
import pytest

from ssdistill.errors import UserError
from ssdistill.evaluate.classification import classify
from ssdistill.evaluate.protocols import Measurements, Protocol


class Guess(Protocol):
    """Always the same class."""

    kind = "guess"
    paper = "none"
    presets: ClassVar = {"second": {"answer": 1}, "none_chosen": {}}

    def __init__(self, *, preset=None, answer=None, seed=3):
        self.preset, self.seed = preset, seed
        self.answer = self.chosen("answer", answer, 0)

    def evaluate(self, subject):
        predictions = np.full(len(subject), self.answer)
        return Measurements(
            {"extra": 7.0},
            classify(subject, predictions=predictions),
            details={"answer": self.answer},
            arrays={"predictions": predictions},
        )


TARGETS = np.array([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("given", "answer", "name"),
    [
        ({}, 0, "guess"),
        ({"answer": 1}, 1, "guess"),
        ({"preset": "second"}, 1, "guess_second"),
        ({"preset": "second", "answer": 0}, 0, "guess_second"),
        ({"preset": "none_chosen"}, 0, "guess_none_chosen"),
    ],
)
def test_a_setting_is_what_is_given_else_the_presets_else_the_default(given, answer, name):
    made = Guess(**given)
    assert (made.answer, made.name) == (answer, name)
    result = made.run(TARGETS)
    assert result.protocol == name
    assert result.settings == {"preset": given.get("preset"), "answer": answer, "seed": 3}


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError) as caught:
        Guess(preset="secnd")
    assert str(caught.value) == (
        "guess.preset: 'secnd' is unknown (did you mean 'second'?); known: second, none_chosen"
    )


def test_every_measure_is_named_after_the_protocol():
    result = Guess(preset="second").run(TARGETS)
    assert result.metrics["probe/guess_second/top1"] == result["top1"] == 25
    assert result.metrics["probe/guess_second/extra"] == 7
    assert all(name.startswith("probe/guess_second/") for name in result.metrics)
    assert result.metrics.keys() == {
        f"probe/guess_second/{name}" for name in [*result.classification.measures, "extra"]
    }
    assert result.details == {"answer": 1} and (result.arrays["predictions"] == 1).all()
    assert 0 <= result.seconds < 5


def test_a_protocol_without_answers_per_image_has_its_own_measures_only():
    class Silent(Guess):
        def evaluate(self, subject):
            return Measurements({"top1": 1.0})

    assert Silent().run(TARGETS).metrics == {"probe/guess/top1": 1.0}


def test_results_are_compared_through_their_answers():
    first, second = Guess().run(TARGETS), Guess(preset="second").run(TARGETS)
    with pytest.raises(UserError, match="'guess' cannot be compared with 'guess_second'"):
        first.paired(second)
    with pytest.raises(UserError, match="'guess' with answer=0 cannot be compared with answer=1"):
        first.paired(Guess(answer=1).run(TARGETS))
    assert first.paired(Guess(seed=4).run(TARGETS)).difference == 0
