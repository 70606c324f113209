import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.stats import ttest_1samp

from ssdistill.report.verdict import (
    AbsoluteClaim,
    BoundClaim,
    ClaimSettings,
    OrderingClaim,
    check_claims,
    exit_code,
    verdict_table,
)

METRIC = "probe/linear/top1"
accuracies = st.lists(st.floats(50, 100).map(lambda v: round(v, 2)), min_size=2, max_size=6)


def records(profile="paper", **models):
    return [
        {"model": model, "seed": seed, "profile": profile, "metrics": {METRIC: value}}
        for model, values in models.items()
        for seed, value in enumerate(values)
    ]


def absolute(values, value, tolerance, profile="paper"):
    claim = AbsoluteClaim(metric=METRIC, model="student", value=value, tolerance=tolerance)
    (verdict,) = check_claims([claim], records(profile, student=values), profile)
    return verdict


def ordering(ours, theirs, by=0.0, profile="reduced", direction="higher"):
    claim = OrderingClaim(
        metric=METRIC, model="student", better_than="control", by=by, direction=direction
    )
    (verdict,) = check_claims([claim], records(profile, student=ours, control=theirs), profile)
    return verdict


def test_interval_is_that_of_students_t():
    # Tabulated two-sided 90 % quantile at 4 degrees of freedom: 2.1318.
    values = [76.20, 75.80, 75.89, 75.85, 76.15]
    verdict = absolute(values, 76.32, 0.5)
    half = 2.1318 * statistics.stdev(values) / math.sqrt(5)
    assert verdict.mean == pytest.approx(75.978)
    assert verdict.low == pytest.approx(75.978 - half, abs=1e-4)
    assert verdict.high == pytest.approx(75.978 + half, abs=1e-4)
    assert verdict.outcome == "INCONCLUSIVE"
    assert "seeds might decide" in verdict.note


@pytest.mark.parametrize("values", [[76.20, 75.80, 75.89], [61.0, 62.5], [1e6, 1.1e6, 9e5, 1e6]])
def test_intervals_are_scipys(values):
    two_sided = absolute(values, 70.0, 0.5)
    expected = ttest_1samp(values, 70.0).confidence_interval(0.9)
    assert (two_sided.low, two_sided.high) == pytest.approx(tuple(expected), rel=1e-12)
    for by, side in ((min(values) - 1, "greater"), (max(values) + 1, "less")):
        one_sided = ordering(values, [0.0] * len(values), by=by)
        expected = ttest_1samp(values, by, alternative=side).confidence_interval(0.9)
        assert (one_sided.low, one_sided.high) == pytest.approx(tuple(expected), rel=1e-12)


def test_the_seeds_that_would_decide_follow_from_the_distance_to_the_margin():
    """Of 90, 94 and 92: the one-sided interval reaches 1.77 down at 3 seeds, 1.2 at 5."""
    values = [90.0, 94.0, 92.0]
    claims = [BoundClaim(metric=METRIC, model="student", at_least=at) for at in (90.5, 91.8)]
    far, near = check_claims(claims, records("paper", student=values), "paper")
    assert (far.outcome, near.outcome) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert far.note == "about 5 seeds might decide"
    assert near.note == "more than 100 seeds needed"


def test_seeds_that_agree_have_an_interval_of_no_width():
    verdict = absolute([0.3, 0.3, 0.3], 0.3, 0.1)
    assert (verdict.low, verdict.high, verdict.outcome) == (0.3, 0.3, "REPRODUCED")


@pytest.mark.parametrize(
    ("value", "outcome"), [(90.0, "REPRODUCED"), (91.5, "BELOW"), (88.0, "ABOVE")]
)
def test_absolute_claim_is_decided_where_the_interval_is_clear(value, outcome):
    assert absolute([89.9, 90.0, 90.1, 90.0], value, 0.5).outcome == outcome


def test_close_mean_with_a_wide_interval_is_not_reproduced():
    assert absolute([88.0, 92.0, 90.0], 90.0, 0.5).outcome == "INCONCLUSIVE"


@given(st.floats(50, 100), st.floats(50, 100), st.floats(0.01, 50))
def test_one_seed_never_decides(obtained, expected, tolerance):
    assert absolute([obtained], expected, tolerance).outcome == "INCONCLUSIVE"
    assert ordering([obtained], [expected]).outcome == "INCONCLUSIVE"


@pytest.mark.parametrize("profile", ["reduced", "smoke"])
def test_paper_number_is_never_held_against_a_smaller_profile(profile):
    verdict = absolute([90.0, 90.1, 90.2], 90.1, 5.0, profile)
    assert (verdict.outcome, verdict.note) == ("NOT COMPARABLE", f"profile {profile}")


def test_records_of_another_profile_are_not_used():
    claim = AbsoluteClaim(metric=METRIC, model="student", value=90.0, tolerance=1.0)
    (verdict,) = check_claims([claim], records("smoke", student=[90.0, 90.1]), "paper")
    assert (verdict.outcome, verdict.n) == ("NO DATA", 0)


def test_ordering_holds_or_fails_or_stays_open():
    theirs = [80.0, 81.0, 82.0]
    assert ordering([85.0, 86.1, 86.9], theirs, by=2.0).outcome == "HOLDS"
    assert ordering([80.5, 81.4, 82.6], theirs, by=2.0).outcome == "FAILS"
    assert ordering([82.5, 82.4, 84.6], theirs, by=2.0).outcome == "INCONCLUSIVE"


def test_ordering_is_paired_by_seed():
    # Seeds differ by far more than the gain, which is the same at every seed.
    theirs = [60.0, 75.0, 90.0]
    verdict = ordering([61.0, 76.1, 90.9], theirs, by=0.5)
    assert verdict.outcome == "HOLDS"
    assert verdict.mean == pytest.approx(1.0)


def test_only_seeds_that_both_have_are_compared():
    claim = OrderingClaim(metric=METRIC, model="student", better_than="control")
    lines = records("reduced", student=[90, 91, 92], control=[80, 81, 82])
    (verdict,) = check_claims(
        [claim], lines[:2] + lines[4:], "reduced"
    )  # student 0, 1; control 1, 2
    assert verdict.n == 1


def test_gains_are_those_of_the_seeds_that_both_have():
    claim = OrderingClaim(metric=METRIC, model="student", better_than="control")
    theirs = {2: 80.0, 3: 90.0, 4: 100.0}
    lines = [
        {"model": "student", "seed": s, "profile": "reduced", "metrics": {METRIC: 81.0 + 11 * s}}
        for s in range(5)
    ]
    lines += [
        {"model": "control", "seed": s, "profile": "reduced", "metrics": {METRIC: value}}
        for s, value in theirs.items()
    ]
    (verdict,) = check_claims([claim], lines, "reduced")
    gains = [81.0 + 11 * seed - theirs[seed] for seed in (2, 3, 4)]
    assert verdict.n == 3
    assert verdict.mean == pytest.approx(statistics.fmean(gains))
    assert verdict.std == pytest.approx(statistics.stdev(gains))


def test_one_sided_interval_is_open_to_the_side_of_the_data():
    # Tabulated one-sided 90 % quantile at 2 degrees of freedom: 1.8856.
    verdict = ordering([81.0, 82.0, 83.6], [80.0, 80.0, 80.0])
    low = 2.2 - 1.8856 * statistics.stdev([1.0, 2.0, 3.6]) / math.sqrt(3)
    assert verdict.low == pytest.approx(low, abs=1e-4)
    assert verdict.high == math.inf


def test_an_interval_open_below_is_not_clear_of_what_is_claimed():
    theirs, gains = [80.0] * 3, [0.0, 1.0, -1.2]
    verdict = ordering([80.0 + gain for gain in gains], theirs, by=0.5)
    high = statistics.fmean(gains) + 1.8856 * statistics.stdev(gains) / math.sqrt(3)
    assert verdict.high == pytest.approx(high, abs=1e-4) and verdict.low == -math.inf
    assert verdict.outcome == "INCONCLUSIVE" and "seeds" in verdict.note


def test_lower_is_better_where_the_claim_says_so():
    assert ordering([70.0, 71.1], [80.0, 81.0], by=5.0, direction="lower").outcome == "HOLDS"
    assert ordering([80.0, 81.1], [70.0, 71.0], direction="lower").outcome == "FAILS"


RANK = {"FAILS": 0, "INCONCLUSIVE": 1, "HOLDS": 2}


@given(accuracies, st.floats(50, 100), st.floats(0.01, 20), st.floats(0, 20))
def test_more_tolerance_never_undoes_a_reproduction(values, expected, tolerance, more):
    narrow = absolute(values, expected, tolerance)
    wide = absolute(values, expected, tolerance + more)
    if narrow.outcome == "REPRODUCED":
        assert wide.outcome == "REPRODUCED"
    if wide.outcome in ("BELOW", "ABOVE"):
        assert narrow.outcome == wide.outcome


@given(accuracies, st.floats(0, 10), st.floats(0, 10), st.data())
def test_better_data_or_a_smaller_margin_never_hurts_an_ordering(ours, by, more, data):
    same = {"min_size": len(ours), "max_size": len(ours)}
    theirs = data.draw(st.lists(st.integers(50, 100), **same))
    before = RANK[ordering(ours, theirs, by + more).outcome]
    assert RANK[ordering(ours, theirs, by).outcome] >= before
    assert RANK[ordering([v + more for v in ours], theirs, by + more).outcome] >= before


@given(accuracies, st.floats(50, 100), st.floats(0.01, 20))
def test_order_of_the_seeds_does_not_matter(values, expected, tolerance):
    forth, back = (absolute(v, expected, tolerance) for v in (values, values[::-1]))
    assert forth.mean == pytest.approx(back.mean)
    assert forth.outcome == back.outcome


@given(accuracies, st.floats(0.1, 5))
def test_above_and_below_mirror_each_other(values, distance):
    mean = statistics.fmean(values)
    over = absolute(values, mean + distance, 0.05).outcome
    under = absolute(values, mean - distance, 0.05).outcome
    assert {"BELOW": "ABOVE", "INCONCLUSIVE": "INCONCLUSIVE"}[over] == under


def test_missing_model_or_metric_is_no_data():
    assert ordering([90.0, 91.0], []).outcome == "NO DATA"


def test_claims_are_told_apart_by_their_keys_and_mistakes_name_theirs():
    adapter = TypeAdapter(ClaimSettings)
    order = {"metric": METRIC, "model": "a", "better_than": "b", "by": 2.0}
    assert isinstance(adapter.validate_python(order), OrderingClaim)
    number = {"metric": METRIC, "model": "a", "value": 90.0, "tolerance": 0.5}
    assert isinstance(adapter.validate_python(number), AbsoluteClaim)
    for wrong in (order | {"tolerance": 1.0}, number | {"tolerence": 1.0}):
        with pytest.raises(ValidationError) as caught:
            adapter.validate_python(wrong)
        assert [e["type"] for e in caught.value.errors()] == ["extra_forbidden"]


def test_table_shows_expected_obtained_interval_n_and_verdict():
    verdicts = [
        absolute([89.9, 90.0, 90.1, 90.0], 90.0, 0.5),
        ordering([85.0, 86.1, 86.9], [80.0, 81.0, 82.0], by=2.0),
        absolute([90.0], 90.0, 0.5),
    ]
    rows = verdict_table(verdicts).rows
    assert rows[0][1:] == ("90.00 ± 0.50", "90.00 ± 0.08", "[89.90, 90.10]", "4", "REPRODUCED")
    assert rows[1][0] == "probe/linear/top1: student > control"
    assert rows[1][3].startswith("≥ ") and rows[1][5] == "HOLDS"
    assert rows[2][2:] == ("90.00", "–", "1", "INCONCLUSIVE (one seed never decides)")


def test_numbers_keep_two_digits_however_small_or_large():
    verdicts = [
        ordering([0.997, 0.996, 0.997], [0.983, 0.983, 0.984]),
        ordering([1_013_757.0, 1_015_000.0], [1_000_000.0, 1_000_000.0]),
        ordering([1.0, 1.0], [1.0, 1.0]),
    ]
    obtained = [row[2:4] for row in verdict_table(verdicts).rows]
    assert obtained[0] == ("0.013 ± 0.001", "≥ 0.013")
    assert obtained[1] == ("14,378 ± 879", "≥ 12,466")
    assert obtained[2] == ("0.00 ± 0.00", "≥ 0.00")


def test_exit_code_says_the_worst():
    good = absolute([90.0, 90.01, 90.0], 90.0, 0.5)
    bad = absolute([90.0, 90.01, 90.0], 80.0, 0.5)
    undecided = absolute([90.0], 90.0, 0.5)
    skipped = absolute([90.0, 91.0], 90.0, 0.5, "smoke")
    assert exit_code([good, skipped]) == 0
    assert exit_code([good, undecided]) == 3
    assert exit_code([good, undecided, bad]) == 1


@pytest.mark.parametrize(
    ("bound", "outcome"),
    [
        ({"at_least": 3.0}, "HOLDS"),
        ({"at_least": 4.5}, "FAILS"),
        ({"at_least": 3.95}, "INCONCLUSIVE"),
        ({"at_most": 4.5}, "HOLDS"),
        ({"at_most": 3.0}, "FAILS"),
    ],
)
def test_a_bound_is_decided_by_the_interval_of_the_value(bound, outcome):
    claim = BoundClaim(metric="compress/speedup", model="int8", **bound)
    values = [3.9, 4.0, 4.1]
    records = [
        {"model": "int8", "seed": s, "metrics": {"compress/speedup": v}}
        for s, v in enumerate(values)
    ]
    (verdict,) = check_claims([claim], records, "reduced")
    # Tabulated one-sided 90 % quantile at 2 degrees of freedom: 1.8856.
    half = 1.8856 * 0.1 / math.sqrt(3)
    assert (verdict.outcome, verdict.n) == (outcome, 3)
    assert verdict.mean == pytest.approx(4.0)
    ends = {end for end in (verdict.low, verdict.high) if not math.isinf(end)}
    assert min(abs(end - 4.0) for end in ends) == pytest.approx(half, abs=1e-4)


def test_a_bound_is_one_number():
    with pytest.raises(
        ValueError, match=r"one of at_least and at_most \(at_least=1 and at_most=2 are"
    ):
        BoundClaim(metric="m", model="a", at_least=1, at_most=2)


def test_a_negative_margin_claims_to_be_hardly_worse():
    claim = OrderingClaim(metric="top1", model="int8", better_than="dense", by=-0.3)
    records = [
        {"model": model, "seed": seed, "metrics": {"top1": value + seed}}
        for model, values in {"int8": (50.0, 50.1, 50.0), "dense": (50.1, 50.15, 50.1)}.items()
        for seed, value in enumerate(values)
    ]
    assert check_claims([claim], records, "reduced")[0].outcome == "HOLDS"
