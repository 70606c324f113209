"""Interleaved timing: a busy machine slows all timed calls alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]
Turns = dict[str, list[list[float]]]
"""Seconds of every call, by name and turn; a skipped turn is empty."""

WARM_UP = 3
FEWEST_ROUNDS = 3
SLOW = 0.1
"""Calls of at least this many seconds get one timed call a turn, without warm-up."""
TURN, MOST = 0.005, 30
"""A turn of quick calls lasts this many seconds, or this many calls at most."""
CONFIDENCE = 0.95


def take_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    repeats: int,
    seconds_each: float,
    clock: Clock = time.perf_counter,
) -> Turns:
    """Time calls in interleaved turns; every round reverses the order of the previous one.

    Args:
        calls: what to time, by name.
        rounds: turns of each.
        repeats: timed calls in a turn, after one that is not timed; more of quick calls (see
            ``TURN``), one of those above ``SLOW``.
        seconds_each: what has been timed for so long gets no more turns than ``FEWEST_ROUNDS``.
        clock: seconds, monotonic.
    """
    lasts = {name: _warm_up(call, clock) for name, call in calls.items()}
    counts = {name: _count(last, repeats) for name, last in lasts.items()}
    turns: Turns = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls) if number % 2 == 0 else list(reversed(calls))
        for name in names:
            call, spent = calls[name], sum(map(sum, turns[name]))
            if number >= FEWEST_ROUNDS and spent > seconds_each:
                turns[name].append([])
                continue
            if lasts[name] < SLOW:
                # The first call of a turn finds the caches full of another model's weights.
                call()
            turns[name].append([_seconds(call, clock) for _ in range(counts[name])])
    return turns


def _count(seconds: float, repeats: int) -> int:
    """Number of timed calls in a turn, for calls of this duration."""
    if seconds >= SLOW:
        return 1
    return max(repeats, min(MOST, int(TURN / max(seconds, 1e-9))))


def _warm_up(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds of the last warming call; what is slow is called twice only."""
    last = _seconds(call, clock)
    for _ in range(WARM_UP - 1):
        last = _seconds(call, clock)
        if last > SLOW:
            break
    return last


def _seconds(call: Callable[[], Any], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


@dataclass(frozen=True)
class Ratio:
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


def ratio(slower: Sequence[Sequence[float]], faster: Sequence[Sequence[float]]) -> Ratio:
    """Median time of ``slower`` over that of ``faster``, round by round.

    What slows the machine down slows both turns of a round: their ratio hardly notices, while
    the ratio of two medians over all rounds does.

    Raises:
        ValueError: no round in which both took a turn.
    """
    pairs = [(a, b) for a, b in zip(slower, faster, strict=True) if a and b]
    round_ratios = sorted(statistics.median(a) / statistics.median(b) for a, b in pairs)
    if not round_ratios:
        raise ValueError("both were never timed in the same round")
    outside = _outside(len(round_ratios))
    return Ratio(
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
    below, missed = 0, 0.0
    while below < count // 2:
        missed += 2 * math.comb(count, below) / 2**count
        if missed > 1 - CONFIDENCE:
            break
        below += 1
    return max(below - 1, 0)
