from types import SimpleNamespace

import pytest
from test_report_page import drawn

from ssdistill.chain.page_content import lineage
from ssdistill.report.charts.comparisons import LatencyPoint, Score, SizePoint, latency_chart
from ssdistill.report.page import PageData, render_page
from ssdistill.report.tables.models import results_table
from ssdistill.report.tables.timing import describe_timing

OLD = {"compress/bytes": 2000, "compress/latency_ms": 0.2}
GAINS = {
    "compress/smaller": 3.93,
    "compress/speedup": 2.314,
    "compress/speedup_low": 2.2,
    "compress/speedup_high": 12.46,
    "compress/runtime_gain": 10.3,
}
TIMING = {
    "runtime": "onnxruntime 1.31",
    "instructions": "AVX512 (avx512_vnni)",
    "reference": None,
    "eager": None,
    "threads": 2,
}


def record(model, metrics, timing=None, seed=0):
    found = {"model": model, "seed": seed, "metrics": metrics}
    return found | ({"timing": timing} if timing else {})


def cells(table, model):
    (row,) = [row for row in table.rows if row[0] == model]
    return dict(zip(table.header, row, strict=True))


def test_records_without_gains_show_none_and_say_nothing_of_them():
    table = results_table([record("distilled", OLD)])
    assert table.header == ("model", "size", "latency (ms)")
    assert "speed-up" not in table.caption and "runtime" not in table.caption


def test_a_gain_is_a_ratio_with_its_interval_where_there_is_one():
    table = results_table([record("distilled", OLD), record("int8", OLD | GAINS)])
    shown = cells(table, "int8")
    assert shown["speed-up"] == "2.31× (2.20 to 12.5)"
    assert shown["smaller"] == "3.93×" and shown["speed-up over PyTorch"] == "10.3×"
    assert cells(table, "distilled")["speed-up"] == "–"
    assert "speed-up, batch 64" not in table.header


def test_gains_of_one_seed_stand_beside_accuracies_of_several():
    runs = [record("int8", {"probe/linear/top1": 90.0 + s}, seed=s) for s in range(3)]
    runs[0]["metrics"] |= GAINS
    shown = cells(results_table(runs), "int8")
    assert shown["linear top-1 (%)"] == "91.00 ± 1.00" and shown["smaller"] == "3.93×"


def test_the_caption_names_runtimes_instructions_and_what_a_speed_up_is_over():
    own = TIMING | {"runtime": "openvino 2026.4", "reference": "distilled"}
    records = [
        record("distilled", OLD, TIMING),
        record("pruned", OLD | GAINS, TIMING | {"reference": "distilled"}),
        record("int8", OLD | GAINS, own),
    ]
    caption = results_table(records).caption
    assert (
        "latency of one image on one thread, onnxruntime 1.31, openvino 2026.4 (int8), "
        "AVX512 (avx512_vnni)" in caption
    )
    assert "speed-up: over distilled in the same runtime, with its 95 % interval" in caption
    assert "speed-up over PyTorch: over the same model in eager PyTorch" in caption


def test_nothing_is_said_of_a_timing_that_the_table_does_not_show():
    assert describe_timing(["compress/bytes"], [record("a", OLD, TIMING)]) == []


def made(role, kind, parent=None):
    return SimpleNamespace(role=role, kind=kind, parents={"model": parent} if parent else {})


def test_a_line_joins_only_what_was_made_one_from_the_other():
    distilled = made("distilled", "distill", made("teacher", "pretrain"))
    pruned = made("pruned", "compress", distilled)
    file, other = made("int8", "compress", pruned), made("bf16", "compress", pruned)
    assert lineage(file) == ["distilled", "pruned", "int8"]
    assert lineage(other) == ["distilled", "pruned", "bf16"]
    assert lineage(distilled) == ["distilled"]
    assert lineage(made("small", "compress", made("teacher", "load"))) == ["teacher", "small"]
    assert lineage(made("byol", "pretrain")) == []


POINTS = (LatencyPoint("slow", 4.0, 91.0, 0.5), LatencyPoint("fast", 0.125, 90.0))


@pytest.mark.parametrize("width", [350, 575])
def test_the_latency_chart_is_logarithmic_and_says_the_times(width):
    svg = latency_chart((*POINTS, LatencyPoint("middle", 2**-0.5, 90.5)), ("slow", "fast"), width)
    root, w, _ = drawn(svg)
    xs = [float(e.get("cx")) for e in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert xs[0] - xs[2] == pytest.approx(xs[2] - xs[1], abs=0.2) and all(0 < x < w for x in xs)
    assert "slow 91.0 % at 4 ms; fast 90.0 % at 0.125 ms" in root.get("aria-label")
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "time for one image" in texts and any(t.endswith(" ms") for t in texts[1:])


@pytest.mark.parametrize("scores", [(), (Score("fast", 90.0),)])
def test_a_page_draws_time_beside_size_where_it_has_both(scores):
    sizes = (SizePoint("slow", 4000, 91.0), SizePoint("fast", 300, 90.0))
    both = render_page(PageData("t", "s", sizes=sizes, latencies=POINTS, scores=scores))
    assert both.count("Accuracy against size</title>") == 2
    assert both.count("Accuracy against latency</title>") == 2
    assert both.count("<svg") == 4 + 2 * len(scores)
    alone = render_page(PageData("t", "s", sizes=sizes, scores=scores))
    assert "latency" not in alone.split("</style>", 1)[1] and alone.count("<svg") == 2 + 2 * len(
        scores
    )
