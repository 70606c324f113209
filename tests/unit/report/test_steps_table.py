from ssdistill.chain.collecting import step_metrics
from ssdistill.report.tables.steps import steps_table

MEASURED = {
    "compress/params": 50,
    "compress/params_before": 100,
    "compress/macs": 1000,
    "compress/macs_before": 1000,
    "compress/bytes": 200,
    "compress/bytes_before": 400,
    "compress/smaller": 2.0,
    "compress/latency_ms": 0.5,
    "compress/latency_ms_before": 1.0,
    "compress/speedup": 2.0,
    "compress/speedup_low": 1.9,
    "compress/speedup_high": 2.1,
    "compress/accepted": 1,
    "agree/original/cka": 0.9,
    "agree/original/cka_before": 0.95,
    "agree/parent/cka": 0.5,
}


def record(seed=0, **changes):
    metrics = step_metrics({**MEASURED, **changes})
    return {"model": "pruned", "seed": seed, "metrics": metrics}


def row(*records):
    table = steps_table(records)
    return dict(zip(table.header, table.rows[0], strict=True)), table.caption


def test_a_step_is_shown_from_before_to_after():
    cells, _ = row(record())
    assert cells["parameters"] == "100 → 50" and cells["MACs"] == "1.00 k"
    assert cells["size"] == "400 B → 200 B" and cells["smaller"] == "2.00×"
    assert cells["batch 1 (ms)"] == "1.000 → 0.500"
    assert cells["speed-up"] == "2.00× (1.90–2.10)"
    assert cells["CKA with the uncompressed model"] == "0.950 → 0.900"


def test_what_was_not_measured_is_left_open():
    cells, _ = row(record())
    assert cells["speed-up, batch 64"] == cells["cosine"] == "–"


def test_agreement_of_the_dense_model_with_itself_is_not_shown():
    cells, _ = row(record(**{"agree/original/cka_before": 1.0}))
    assert cells["CKA with the uncompressed model"] == "0.900"


def test_seeds_are_averaged():
    cells, _ = row(record(0), record(1, **{"compress/bytes": 100}))
    assert cells["size"] == "400 B → 150 B"


def test_a_step_that_a_gate_left_out_is_marked_and_explained():
    cells, caption = row(record(**{"compress/accepted": 0}))
    assert cells["model"] == "pruned\N{NO-BREAK SPACE}*" and "which its gate skipped" in caption


def test_without_compression_there_is_no_table():
    assert steps_table([{"model": "teacher", "metrics": {"compress/bytes": 1}}]) is None
    assert step_metrics({"compress/bytes": 1, "train/steps": 2}) == {}
