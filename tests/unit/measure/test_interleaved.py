"""Timing with a simulated clock that calls advance."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.measure.interleaved import WARM_UP, _outside, speedup_of, time_in_turns
from ssdistill.measure.latency import compare_latency, example, paired_latency
from ssdistill.models.wrapped import Wrapped


class Watch:
    """A clock that only timed things move; ``loads`` are how slow everything is, by call."""

    def __init__(self, loads=()):
        self.now, self.order, self.loads = 0.0, [], iter(loads)

    def __call__(self):
        return self.now

    def file(self, name, cost, runtime="a runtime 1.0"):
        def call(x):
            self.order.append(name)
            self.now += cost * len(x) * next(self.loads, 1.0)

        return File(call, runtime)


class File:
    def __init__(self, call, runtime):
        self.call, self.runtime = call, runtime
        self.spec = SimpleNamespace(image_size=4, in_chans=3)
        self.threads_used, self.session_threads = [], 7

    def __call__(self, x):
        self.threads_used.append(self.session_threads)
        self.call(x)

    def version(self):
        return self.runtime


def test_a_turn_is_one_call_untimed_and_the_rest_timed_in_an_order_that_alternates():
    watch, calls = Watch(), []

    def call(name):
        calls.append(name)
        watch.now += 0.01

    named = {name: lambda name=name: call(name) for name in "ab"}
    turns = time_in_turns(named, 2, 2, 9.0, watch)
    warm = WARM_UP * ["a"] + WARM_UP * ["b"]
    assert calls == warm + ["a"] * 3 + ["b"] * 3 + ["b"] * 3 + ["a"] * 3
    assert turns["a"] == [pytest.approx([0.01, 0.01])] * 2


@pytest.mark.parametrize(("seconds", "calls"), [(0.0001, 30), (0.0009, 5), (0.004, 3), (0.2, 1)])
def test_a_turn_of_quick_calls_has_more_of_them(seconds, calls):
    watch = Watch()
    turns = time_in_turns({"a": lambda: watch.file("a", seconds)([0])}, 2, 3, 9.0, watch)
    assert [len(turn) for turn in turns["a"]] == [calls, calls]


def test_what_is_slow_is_called_less_often_and_keeps_its_place_in_the_rounds():
    watch = Watch()
    models = {"slow": watch.file("slow", 1.0), "fast": watch.file("fast", 0.01)}
    slow, fast = compare_latency(models, None, (1,), rounds=20, seconds_each=9.0, clock=watch)
    assert (slow.calls, fast.calls) == (10, 60)
    assert (slow.p50_ms, fast.p50_ms) == (pytest.approx(1000), pytest.approx(10))
    assert watch.order.count("slow") == 2 + 10


def test_a_ratio_pairs_the_calls_of_a_round_and_leaves_out_rounds_without_both():
    slower = [[4.0, 4.0, 90.0], [8.0], [], [30.0]]
    faster = [[2.0], [2.0, 2.0], [1.0], [10.0]]
    found = speedup_of(slower, faster)
    assert (found.median, found.low, found.high, found.rounds) == (3.0, 2.0, 4.0, 3)
    with pytest.raises(ValueError, match="never timed in the same round"):
        speedup_of([[]], [[1.0]])


def test_the_interval_of_twenty_rounds_is_from_the_sixth_to_the_fifteenth():
    ratios = random.Random(0).sample(range(1, 21), 20)
    found = speedup_of([[2.0 * ratio] for ratio in ratios], [[2.0]] * 20)
    # 2 P(Binomial(20, 1/2) <= 5) = 4.1 %, with 6 it would be 11.5 %.
    assert (found.median, found.low, found.high, found.rounds) == (10.5, 6, 15, 20)


@pytest.mark.parametrize("count", [1, 3, 5, 6, 9, 12, 20, 40])
def test_the_interval_of_a_median_covers_95_percent_and_is_the_narrowest_that_does(count):
    def missed(outside):
        return 2 * sum(math.comb(count, i) for i in range(outside + 1)) / 2**count

    outside = _outside(count)
    assert 0 <= outside < (count + 1) / 2
    assert missed(outside + 1) > 0.05
    # Five values cannot cover it: the extremes are all there is.
    assert missed(outside) <= 0.05 or (outside == 0 and count < 6)


def test_what_slows_a_whole_round_down_does_not_touch_the_speed_up():
    draw = random.Random(0)
    rounds = [1 + 9 * draw.random() for _ in range(40)]
    # After the warm-up every round has four calls: one of each untimed, one of each timed.
    watch = Watch([1.0] * 2 * WARM_UP + [load for load in rounds for _ in range(4)])
    model, reference = watch.file("model", 0.02), watch.file("reference", 0.03)
    found = paired_latency(model, reference, rounds=40, calls=1, seconds_each=99, clock=watch)
    assert [found.speedup, found.speedup_low, found.speedup_high] == pytest.approx([1.5] * 3)
    assert found.rounds == 40 and found.p90_ms > 1.3 * found.p50_ms


def test_a_pair_states_runtimes_batch_threads_and_times():
    watch = Watch()
    model, reference = watch.file("model", 0.001), watch.file("reference", 0.002, "b runtime 2")
    found = paired_latency(model, reference, batch_size=8, threads=2, clock=watch)
    assert (found.runtime, found.reference_runtime) == ("a runtime 1.0", "b runtime 2")
    assert (found.batch_size, found.threads) == (8, 2)
    assert found.p50_ms == found.p90_ms == pytest.approx(8)
    assert found.reference_p50_ms == pytest.approx(16)
    assert [found.speedup, found.speedup_low, found.speedup_high] == pytest.approx([2.0] * 3)
    assert set(model.threads_used) == {2} and model.session_threads == 7


def test_any_module_is_timed_on_its_own_inputs_and_left_as_it_was():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5), nn.Dropout())
    model = Wrapped(net, torch.randint(0, 9, (2, 3)))
    (row,) = compare_latency({"m": model}, batch_sizes=(5,), rounds=1, calls=1)
    assert row.runtime == f"torch {torch.__version__} eager" and row.p50_ms > 0
    assert model.training and net[3].training


def test_inputs_are_repeated_up_to_the_batch_size():
    given = torch.tensor([[1.0], [2.0], [3.0]])
    assert example([], 5, given).flatten().tolist() == [1, 2, 3, 1, 2]
    assert example([], 2, given).flatten().tolist() == [1, 2]
    assert example(
        [SimpleNamespace(spec=None), Wrapped(nn.Linear(2, 2), torch.ones(2, 2))], 3
    ).shape == (3, 2)
    with pytest.raises(UserError, match="no example"):
        example([SimpleNamespace(spec=None)], 1)


def test_threads_are_given_back_even_when_a_model_fails():
    def broken(x):
        raise RuntimeError("broken")

    file, threads = File(broken, "x"), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        compare_latency({"f": file}, torch.ones(1, 1), threads=3)
    assert file.session_threads == 7 and torch.get_num_threads() == threads
