"""Verify claims with confidence intervals over seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Tag, model_validator

from ssdistill.errors import not_one_of
from ssdistill.report.tables.models import MISSING, ResultRow, Table, results_rows
from ssdistill.settings import Positive, Settings

CONFIDENCE = 0.9
"""Of every interval; 5 % lie beyond each end of a two-sided one."""
TWO_SIDED = CONFIDENCE + (1 - CONFIDENCE) / 2
MOST_SEEDS = 100
Outcome = Literal[
    "REPRODUCED",
    "BELOW",
    "ABOVE",
    "HOLDS",
    "FAILS",
    "INCONCLUSIVE",
    "NOT COMPARABLE",
    "NO DATA",
]


class AbsoluteClaim(Settings):
    """``metric`` of ``model`` equals ``value`` within ``tolerance``, as a paper printed it."""

    metric: str
    model: str
    value: float
    tolerance: Positive


class OrderingClaim(Settings):
    """``model`` beats ``better_than`` on ``metric`` by at least ``by``, compared seed by seed.

    Args:
        by: a negative margin claims that it is at most so much worse.
        direction: ``lower`` for metrics where less is better (bytes, latency).
    """

    metric: str
    model: str
    better_than: str
    by: float = 0.0
    direction: Literal["higher", "lower"] = "higher"


class BoundClaim(Settings):
    """``metric`` of ``model`` is ``at_least``, or ``at_most``, a number of one's own choice."""

    metric: str
    model: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> "BoundClaim":
        if problem := not_one_of({"at_least": self.at_least, "at_most": self.at_most}):
            raise ValueError(problem)
        return self


def _kind_of(claim: Any) -> str:
    fields = claim if isinstance(claim, dict) else getattr(claim, "__dict__", {})
    if "better_than" in fields:
        return "ordering"
    return "bound" if {"at_least", "at_most"} & set(fields) else "absolute"


ClaimSettings = Annotated[
    Annotated[AbsoluteClaim, Tag("absolute")]
    | Annotated[OrderingClaim, Tag("ordering")]
    | Annotated[BoundClaim, Tag("bound")],
    Discriminator(_kind_of),
]


@dataclass(frozen=True)
class Verdict:
    """One claim held against the records.

    Attributes:
        claim, expected: as text.
        mean, std: of the obtained value (an ordering: of the paired difference); None without data.
        low, high: the 90 % interval; one end is infinite for an ordering, whose interval is
            one-sided; None with fewer than two seeds.
        n: seeds (an ordering: seeds that both models have).
        note: why nothing was decided, and how many seeds might decide it.
    """

    claim: str
    expected: str
    outcome: Outcome
    n: int = 0
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def check_claims(
    claims: Iterable[AbsoluteClaim | OrderingClaim | BoundClaim],
    records: Iterable[dict[str, Any]],
    profile: str = "paper",
) -> list[Verdict]:
    """Check every claim against the records of one profile.

    Absolute claims are an equivalence test (two one-sided t tests at 5 % each: the 90 % interval
    must lie within the tolerance; Schuirmann 1987) and are scored for ``paper`` only. Orderings
    are decided by the one-sided 90 % interval of the difference paired by seed, bounds by that of
    the value itself, both at any profile.
    """
    of_profile = (r for r in records if (r.get("profile") or profile) == profile)
    rows = {row.model: row for row in results_rows(of_profile)}
    judges = {
        OrderingClaim: _ordering,
        BoundClaim: _bound,
        AbsoluteClaim: partial(_absolute, profile=profile),
    }
    return [judges[type(claim)](claim, rows) for claim in claims]


def _absolute(claim: AbsoluteClaim, rows: dict[str, ResultRow], profile: str) -> Verdict:
    text = f"{claim.model} {claim.metric}"
    expected = f"{_number(claim.value)} ± {_number(claim.tolerance)}"
    values = _values(claim.model, claim.metric, rows)
    if profile != "paper":
        note = f"profile {profile}"
        return Verdict(text, expected, "NOT COMPARABLE", len(values), *_summary(values), note=note)
    return Verdict(text, expected, **_equivalence(values, claim.value, claim.tolerance))


def _equivalence(values: Sequence[float], expected: float, tolerance: float) -> dict[str, Any]:
    """Outcome of two one-sided tests of ``mean(values)`` within ``expected`` ± ``tolerance``."""
    mean, std = _summary(values)
    facts: dict[str, Any] = {"n": len(values), "mean": mean, "std": std}
    if mean is None or std is None:
        return facts | _undecided(len(values))
    half = _half_width(std, len(values), TWO_SIDED)
    low, high = mean - half, mean + half
    outcome: Outcome = "INCONCLUSIVE"
    if high < expected - tolerance:
        outcome = "BELOW"
    elif low > expected + tolerance:
        outcome = "ABOVE"
    elif low >= expected - tolerance and high <= expected + tolerance:
        outcome = "REPRODUCED"
    facts |= {"low": low, "high": high, "outcome": outcome}
    if outcome == "INCONCLUSIVE":
        room = abs(tolerance - abs(mean - expected))
        facts["note"] = _seeds_needed(std, room, TWO_SIDED)
    return facts


def _ordering(claim: OrderingClaim, rows: dict[str, ResultRow]) -> Verdict:
    sign, symbol = (1, ">") if claim.direction == "higher" else (-1, "<")
    text = f"{claim.metric}: {claim.model} {symbol} {claim.better_than}"
    expected = f"by {_number(claim.by)}"
    model_values, baseline_values = (
        rows[name].values.get(claim.metric, {}) if name in rows else {}
        for name in (claim.model, claim.better_than)
    )
    gains = [
        sign * (model_values[seed] - baseline_values[seed])
        for seed in sorted(model_values.keys() & baseline_values.keys())
    ]
    return Verdict(text, expected, **_one_sided(gains, claim.by))


def _bound(claim: BoundClaim, rows: dict[str, ResultRow]) -> Verdict:
    values = _values(claim.model, claim.metric, rows)
    text = f"{claim.model} {claim.metric}"
    if claim.at_most is None:
        at_least = cast("float", claim.at_least)  # a claim has one of the two
        expected = f"at least {_number(at_least)}"
        return Verdict(text, expected, **_one_sided(values, at_least))
    test = _one_sided([-value for value in values], -claim.at_most)
    mirrored = {"mean": test["mean"], "low": test.get("high"), "high": test.get("low")}
    test |= {name: value if value is None else -value for name, value in mirrored.items()}
    return Verdict(text, f"at most {_number(claim.at_most)}", **test)


def _one_sided(gains: Sequence[float], by: float) -> dict[str, Any]:
    """Outcome of a one-sided t test of ``mean(gains)`` against ``by``, either way."""
    mean, std = _summary(gains)
    facts: dict[str, Any] = {"n": len(gains), "mean": mean, "std": std}
    if mean is None or std is None:
        return facts | _undecided(len(gains))
    half = _half_width(std, len(gains), CONFIDENCE)
    # The interval is open to the side that the data lean to.
    low, high = (mean - half, math.inf) if mean >= by else (-math.inf, mean + half)
    outcome: Outcome = "HOLDS" if low >= by else "FAILS" if high < by else "INCONCLUSIVE"
    note = _seeds_needed(std, abs(mean - by), CONFIDENCE) if outcome == "INCONCLUSIVE" else ""
    return facts | {"low": low, "high": high, "outcome": outcome, "note": note}


def _undecided(n: int) -> dict[str, Any]:
    if n == 0:
        return {"outcome": "NO DATA", "note": "no finished run has this metric"}
    return {"outcome": "INCONCLUSIVE", "note": "one seed never decides"}


def _values(model: str, metric: str, rows: dict[str, ResultRow]) -> list[float]:
    return list(rows[model].values.get(metric, {}).values()) if model in rows else []


def _summary(values: Sequence[float]) -> tuple[float | None, float | None]:
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def _half_width(std: float, n: int, probability: float) -> float:
    """From the mean of n seeds to the end of a t interval, beyond which 1 - ``probability`` lie.

    Not scipy's ``t.interval``, which has none where all seeds agree (``std`` = 0).
    """
    from scipy.stats import t as student_t

    return float(student_t.ppf(probability, n - 1)) * std / math.sqrt(n)


def _seeds_needed(std: float, room: float, probability: float) -> str:
    """Seeds at which an interval of this spread around this mean would decide."""
    for n in range(2, MOST_SEEDS + 1):
        if _half_width(std, n, probability) < room:
            return f"about {n} seeds might decide"
    return f"more than {MOST_SEEDS} seeds needed"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """claim, expected, obtained mean ± std, 90 % interval, n, verdict."""
    header = ("claim", "expected", "obtained", "90 % interval", "n", "verdict")
    body = tuple(
        (v.claim, v.expected, _obtained(v), _interval(v), str(v.n), _outcome(v)) for v in verdicts
    )
    caption = (
        "REPRODUCED: the 90 % interval lies within the tolerance; HOLDS: the one-sided 90 % "
        "interval of the difference, paired by seed, lies beyond the margin. "
        "Obtained is mean ± standard deviation over n seeds."
    )
    numeric = (False, True, True, True, True, False)
    return Table(header, body, caption, "Claims", numeric)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0: all claims hold; 1: a claim fails; 3: some are undecided."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if outcomes & {"FAILS", "BELOW", "ABOVE"}:
        return 1
    return 3 if outcomes & {"INCONCLUSIVE", "NO DATA"} else 0


def _obtained(verdict: Verdict) -> str:
    if verdict.mean is None:
        return MISSING
    decimals = _decimals(verdict)
    spread = "" if verdict.std is None else f" ± {_number(verdict.std, decimals)}"
    return f"{_number(verdict.mean, decimals)}{spread}"


def _interval(verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return MISSING
    low, high = (_number(end, _decimals(verdict)) for end in (verdict.low, verdict.high))
    if math.isinf(verdict.high):
        return f"≥ {low}"
    if math.isinf(verdict.low):
        return f"≤ {high}"
    return f"[{low}, {high}]"


def _decimals(verdict: Verdict) -> int:
    """Return two digits of what was obtained, or of its spread where that is larger.

    Small numbers have two decimals or more, bytes and MACs none.
    """
    size = max(abs(verdict.mean or 0.0), verdict.std or 0.0)
    if size >= 10_000:
        return 0
    return 2 if size == 0 else min(6, max(2, 1 - math.floor(math.log10(size))))


def _number(value: float, decimals: int | None = None) -> str:
    """Grouped from ten thousand on, and whole by default."""
    large = abs(value) >= 10_000
    decimals = (0 if large else 2) if decimals is None else decimals
    return f"{value:,.{decimals}f}" if large else f"{value:.{decimals}f}"


def _outcome(verdict: Verdict) -> str:
    return f"{verdict.outcome} ({verdict.note})" if verdict.note else verdict.outcome
