from ssdistill.report.tables.columns import columns_for, protocol_words
from ssdistill.report.tables.protocols import protocols_table


def record(model, metrics):
    return {"model": model, "seed": 0, "metrics": metrics}


USUAL = {"probe/linear/top1": 50.0, "probe/linear/top1_stderr": 0.5, "probe/knn/top1": 40.0}
MORE = {
    "probe/low_shot_10pct/top1": 30.0,
    "probe/retrieval/map": 20.0,
    "probe/retrieval/map_r": 10.0,
    "time/probe/retrieval": 1.25,
}


def test_protocols_with_columns_of_their_own_need_no_table():
    assert protocols_table([record("distilled", metrics=USUAL)]) is None


def test_every_protocol_has_a_row_and_every_model_a_column():
    records = [record("teacher", metrics=USUAL), record("int8", metrics=USUAL | MORE)]
    table = protocols_table(records)
    assert table.header == ("protocol", "measure", "teacher", "int8", "seconds")
    assert table.rows == (
        ("linear", "top-1 (%)", "50.00 ± 0.50", "50.00 ± 0.50", "–"),
        ("k-NN", "top-1 (%)", "40.00", "40.00", "–"),
        ("low-shot 10 %", "top-1 (%)", "–", "30.00", "–"),
        ("retrieval", "mAP (%)", "–", "20.00", "1.2"),
    )


def test_times_are_those_of_the_model_that_answered_most():
    trained = {"probe/finetune/top1": 60.0, "time/probe/finetune": 9.0, "time/probe/retrieval": 3.0}
    records = [record("student", metrics=MORE | trained), record("int8", metrics=MORE)]
    table = protocols_table(records)
    assert {row[0]: row[-1] for row in table.rows} == {
        "low-shot 10 %": "–",
        "retrieval": "3.0",
        "finetune": "9.0",
    }
    assert "for the model 'student'" in table.caption


def test_the_table_of_results_keeps_to_the_first_protocols():
    headers = [c.header for c in columns_for([record("int8", metrics=USUAL | MORE)])]
    assert headers[:2] == ["linear top-1 (%)", "k-NN top-1 (%)"]
    assert not any("retrieval" in header for header in headers)


def test_where_none_of_the_first_was_asked_the_others_have_columns():
    headers = [c.header for c in columns_for([record("int8", metrics=MORE)])]
    assert headers[:2] == ["low-shot 10 % top-1 (%)", "retrieval mAP (%)"]


def test_protocols_are_written_as_words():
    words = {"linear_sgd_moco": "linear SGD moco", "knn": "k-NN", "low_shot": "low-shot"}
    assert {name: protocol_words(name) for name in words} == words
