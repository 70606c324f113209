"""Whether a compressed model is recommended, or the one that it was made from."""

from pathlib import Path

import pytest

from ssdistill.chain.report import _preferred_last
from ssdistill.report.advice import PARENT, advise

LINEAR = "probe/linear/top1"


def parent(seed=0, **metrics):
    return {"model": "recovered", "seed": seed, "metrics": metrics}


def child(seed=0, tests=(), model="int8", of="recovered", **metrics):
    steps = {f"step/{name}": value for name, value in metrics.items() if "/" not in name}
    others = {name: value for name, value in metrics.items() if "/" in name}
    return {
        "model": model,
        "seed": seed,
        "metrics": steps | others,
        PARENT: {"model": of, "paired": list(tests)},
    }


def test_of(low, difference, high, protocol="linear"):
    return {"protocol": protocol, "difference": difference, "low": low, "high": high}


test_of.__test__ = False


def speed(speedup, low, high):
    return {"speedup": speedup, "speedup_low": low, "speedup_high": high}


def said(*records):
    return [str(advice) for advice in advise(records)]


def test_a_slower_model_is_called_slower_and_its_parent_is_preferred():
    (advice,) = advise([parent(), child(**speed(0.56, 0.5, 0.6), smaller=2.9)])
    assert advice.preferred == "recovered"
    assert str(advice) == (
        "int8 is 1.8x slower than recovered here (batch 1, 1 thread): prefer recovered, "
        "unless a 2.9x smaller file matters more"
    )


@pytest.mark.parametrize(
    "numbers", [speed(1.8, 1.7, 1.9), speed(0.97, 0.93, 1.02), speed(1.0, 1.0, 1.0), {}]
)
def test_a_model_that_is_as_fast_within_noise_is_offered_without_a_word(numbers):
    assert said(parent(), child(**numbers, smaller=2.9)) == []


def test_seeds_that_scatter_around_the_parents_speed_say_nothing():
    records = [
        child(seed, **speed(s, s - 0.01, s + 0.01)) for seed, s in enumerate((0.7, 0.9, 1.2))
    ]
    assert said(parent(), *records) == []
    records = [child(seed, **speed(s, s - 0.01, s + 0.01)) for seed, s in enumerate((0.7, 0.72))]
    assert len(said(parent(), *records)) == 1


def test_a_model_that_is_faster_in_batches_is_said_to_be():
    batch = {f"speedup_batch64{end}": value for end, value in (("", 1.3), ("_low", 1.2))}
    (line,) = said(parent(), child(**speed(0.5, 0.4, 0.6), **batch))
    assert "2.0x slower than recovered here (batch 1, 1 thread; 1.3x faster at batch 64)" in line


def test_without_a_paired_timing_latencies_must_differ_by_more_than_they_scatter():
    times = ("compress/latency_ms", "compress/latency_p90_ms")
    before = parent(**dict(zip(times, (1.0, 1.1), strict=True)))
    slow, noisy = (dict(zip(times, pair, strict=True)) for pair in ((1.5, 1.6), (1.5, 2.5)))
    assert "1.5x slower" in said(before, child(**slow))[0]
    assert said(before, child(**noisy)) == []


@pytest.mark.parametrize(("after", "larger"), [(1500, True), (1005, False), (500, False)])
def test_a_larger_file_is_said_to_be_larger(after, larger):
    lines = said(parent(), child(bytes=after, bytes_before=1000))
    assert lines == (["int8 is 1.5x larger than recovered: prefer recovered"] if larger else [])


def test_accuracy_falls_when_the_interval_of_the_paired_test_lies_below_zero():
    (line,) = said(parent(), child(tests=[test_of(-2.0, -1.2, -0.4)], **speed(1.5, 1.4, 1.6)))
    assert line == (
        "int8 loses 1.20 points of linear top-1 against recovered (95 % interval 0.40 to 2.00): "
        "prefer recovered, unless 1.5x the speed matters more"
    )
    assert said(parent(), child(tests=[test_of(-2.0, -0.9, 0.2)])) == []


def test_the_linear_probe_decides_among_protocols():
    tests = [test_of(-3.0, -2.0, -1.0, "knn"), test_of(-1.0, 0.0, 1.0)]
    assert said(parent(), child(tests=tests)) == []


@pytest.mark.parametrize(("accuracy", "falls"), [(88.0, True), (89.5, False), (91.0, False)])
def test_without_a_paired_test_accuracy_must_fall_by_more_than_both_spreads(accuracy, falls):
    error = {f"{LINEAR}_stderr": 0.5}
    lines = said(parent(**{LINEAR: 90.0}, **error), child(**{LINEAR: accuracy}, **error))
    assert [("loses 2.00 points" in line) for line in lines] == ([True] if falls else [])


def test_without_labels_agreement_decides_and_with_labels_it_is_only_said():
    (line,) = said(parent(), child(cka=0.90, cka_before=0.95))
    assert line == (
        "int8 agrees less with the uncompressed model than recovered (CKA 0.900 after 0.950): "
        "prefer recovered"
    )
    even = [test_of(-0.5, 0.0, 0.5)]
    (advice,) = advise([parent(), child(tests=even, cka=0.90, cka_before=0.95)])
    assert advice.preferred == "int8" and "agrees less" in str(advice)
    assert said(parent(), child(cka=0.949, cka_before=0.95)) == []


def test_agreement_must_fall_by_more_than_it_differs_between_seeds():
    falls = [child(seed, cka=0.95 - f, cka_before=0.95) for seed, f in enumerate((0.0, 0.06))]
    assert said(parent(), *falls) == []
    falls = [child(seed, cka=0.95 - f, cka_before=0.95) for seed, f in enumerate((0.05, 0.06))]
    assert len(said(parent(), *falls)) == 1


def test_only_the_last_model_of_a_plan_is_held_against_its_parent():
    pruned = child(model="recovered", of="distilled", **speed(0.5, 0.4, 0.6))
    distilled = {"model": "distilled", "seed": 0, "metrics": {}}
    assert said(distilled, pruned, child(**speed(1.5, 1.4, 1.6))) == []
    assert len(said(distilled, pruned)) == 1


def test_records_of_older_versions_and_steps_left_out_say_nothing():
    old = child(**speed(0.5, 0.4, 0.6))
    del old[PARENT]
    assert said(parent(), old) == []
    assert said(parent(), child(accepted=0, **speed(0.5, 0.4, 0.6))) == []


def test_the_preferred_model_is_the_last_of_the_report():
    models = {name: Path(name) for name in ("teacher", "recovered", "int8")}
    slow = advise([parent(), child(**speed(0.5, 0.4, 0.6))])
    assert list(_preferred_last(models, slow)) == ["teacher", "int8", "recovered"]
    assert list(_preferred_last(models, [])) == ["teacher", "recovered", "int8"]
