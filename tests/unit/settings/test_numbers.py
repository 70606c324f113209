import pytest

from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.settings import Settings
from ssdistill.settings.problems import validated


class Sample(Settings):
    steps: int = 1
    ratio: float | None = None
    seeds: tuple[int, ...] = ()
    flag: bool = False
    either: bool | int = 0


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["steps", "ratio"])
def test_true_is_not_one(name, value):
    with pytest.raises(UserError, match=rf"x\.{name}: .*got {str(value).lower()}"):
        validated(Sample, {name: value}, "x")


def test_true_in_a_list_is_not_one():
    with pytest.raises(UserError, match=r"x\.seeds\.1: .*got true"):
        validated(Sample, {"seeds": [0, True]}, "x")


def test_what_may_be_true_stays_true():
    sample = validated(Sample, {"flag": True, "either": True, "steps": 2}, "x")
    assert sample.flag is True and sample.either is True and sample.steps == 2


@pytest.mark.parametrize("word", ["pretrain.steps=yes", "--pretrain.steps", "seeds=[on]"])
def test_a_number_whose_value_was_forgotten_is_refused(word):
    with pytest.raises(UserError, match=r"(pretrain\.steps|seeds\.0): expected a number"):
        load_experiment("quickstart", [word])


@pytest.mark.parametrize("text, steps", [("010", 10), ("0x10", 16), ("1_0", 10), ("+7", 7)])
def test_a_number_is_what_it_looks_like(text, steps):
    experiment, _ = load_experiment("quickstart", [f"pretrain.steps={text}"])
    assert experiment.pretrain.steps == steps


def test_minutes_and_seconds_are_no_number():
    with pytest.raises(UserError, match=r"pretrain\.steps: .*got '1:30'"):
        load_experiment("quickstart", ["pretrain.steps=1:30"])


def test_a_problem_within_a_choice_of_types_has_the_name_of_a_key():
    with pytest.raises(UserError) as raised:
        load_experiment("quickstart", ["distill.losses.feature.pairs=[[-1, 0]]"])
    lines = str(raised.value).splitlines()[1:]
    assert all(line.strip().startswith("distill.losses.feature.pairs") for line in lines)
    assert "tuple[" not in str(raised.value) and "literal[" not in str(raised.value)


@pytest.mark.parametrize(
    "key", ["experiment", "device.device", "tracking.tracking", "distill.distill"]
)
def test_a_wrong_key_that_is_called_like_its_section_is_named(key):
    with pytest.raises(UserError, match=rf"  {key}: no such setting"):
        load_experiment("quickstart", [f"{key}=1"])
