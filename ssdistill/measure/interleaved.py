"""Interleaved timing: a busy machine slows all timed calls equally."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]
TimedTurns = dict[str, list[list[float]]]
"""Seconds of every call, by name and turn; a skipped turn is empty."""

WARM_UP = 3
FEWEST_ROUNDS = 3
SLOW_SECONDS = 0.1
"""Calls of at least this many seconds get one timed call a turn, without warm-up."""
TURN_SECONDS, MOST_CALLS = 0.005, 30
"""A turn of quick calls warm_seconds this many seconds, or this many calls at most."""
CONFIDENCE = 0.95


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    repeats: int,
    seconds_each: float,
    clock: Clock = time.perf_counter,
) -> TimedTurns:
    """Time calls in interleaved turns; every round reverses the order of the previous one.

    Args:
        calls: what to time, by name.
        rounds: turns of each.
        repeats: timed calls in a turn, after one that is not timed; more of quick calls (see
            ``TURN_SECONDS``), one of those above ``SLOW_SECONDS``.
        seconds_each: what has been timed for so long gets no more turns than ``FEWEST_ROUNDS``.
        clock: seconds, monotonic.
    """
    warm_seconds = {name: _warm_up(call, clock) for name, call in calls.items()}
    counts = {name: _count(seconds, repeats) for name, seconds in warm_seconds.items()}
    seconds_by_turn: TimedTurns = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls) if number % 2 == 0 else list(reversed(list(calls)))
        for name in names:
            call, seconds = calls[name], sum(map(sum, seconds_by_turn[name]))
            if number >= FEWEST_ROUNDS and seconds > seconds_each:
                seconds_by_turn[name].append([])
                continue
            if warm_seconds[name] < SLOW_SECONDS:
                # The first call of a turn finds the caches full of another model's weights.
                call()
            seconds_by_turn[name].append([_seconds(call, clock) for _ in range(counts[name])])
    return seconds_by_turn


def _count(seconds: float, repeats: int) -> int:
    """Number of timed calls in a turn, for calls of this duration."""
    if seconds >= SLOW_SECONDS:
        return 1
    return max(repeats, min(MOST_CALLS, int(TURN_SECONDS / max(seconds, 1e-9))))


def _warm_up(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds of the last warming call; what is slow is called twice only."""
    last = _seconds(call, clock)
    for _ in range(WARM_UP - 1):
        last = _seconds(call, clock)
        if last > SLOW_SECONDS:
            break
    return last


def _seconds(call: Callable[[], Any], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


@dataclass(frozen=True)
class Speedup:
    """Speed-up, from the paired turns of each round.

    Attributes:
        median: over the rounds.
        low, high: distribution-free interval of the median at 95 %; with fewer than six rounds,
            which cannot give that much, all there is between the extremes.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int


def speedup_of(reference: Sequence[Sequence[float]], model: Sequence[Sequence[float]]) -> Speedup:
    """Median time of ``reference`` over that of ``model``, round by round.

    What slows the machine down slows both turns of a round: their ratio hardly notices, while
    the ratio of two medians over all rounds does.

    Raises:
        ValueError: no round in which both took a turn.
    """
    pairs = [(a, b) for a, b in zip(reference, model, strict=True) if a and b]
    round_ratios = sorted(statistics.median(a) / statistics.median(b) for a, b in pairs)
    if not round_ratios:
        raise ValueError("both were never timed in the same round")
    outside = _outside(len(round_ratios))
    return Speedup(
        statistics.median(round_ratios),
        round_ratios[outside],
        round_ratios[-1 - outside],
        len(round_ratios),
    )


def _outside(count: int) -> int:
    """How many of ``count`` sorted values lie below the interval of their median.

    The interval from the i-th smallest to the i-th largest misses the median with probability
    2 P(Binomial(count, 1/2) < i) (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    from scipy.stats import binom

    below = binom.ppf((1 - CONFIDENCE) / 2, count, 0.5)
    return max(int(below) - 1, 0)
