import pytest

from ssdistill.measure.throughput import Spread, take_turns


def test_a_ratio_is_taken_within_a_round():
    spread = Spread.of_ratios([10.0, 40.0, 30.0], [10.0, 20.0, 10.0])
    assert (spread.median, spread.low, spread.high, spread.n) == (2.0, 1.0, 3.0, 3)


@pytest.mark.parametrize("values", [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_must_match(values):
    with pytest.raises(ValueError):
        Spread.of_ratios(*values)


def test_programs_take_turns_after_a_round_that_does_not_count():
    order, announced = [], []
    turns = {name: lambda name=name: order.append(name) or {"x": len(order)} for name in "ab"}
    found = take_turns(turns, 2, lambda name, number: announced.append((name, number)))
    assert order == ["a", "b"] * 3
    assert announced == [(name, number) for number in range(3) for name in "ab"]
    assert found == {"a": [{"x": 3}, {"x": 5}], "b": [{"x": 4}, {"x": 6}]}
    with pytest.raises(ValueError, match="at least one round"):
        take_turns(turns, 0)
