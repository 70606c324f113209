"""What is wrong with a record, in the words of the reader that stumbled over it."""

import pytest

from ssdistill.errors import UserError
from ssdistill.record.metrics_file import read_metrics
from ssdistill.record.run_record import load_run


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 2', r"not JSON \(Expecting ',' delimiter: line 1 column 13"),
        ("", r"not JSON \(Expecting value: line 1 column 1"),
        ("[]", r"not a run record \(not a JSON object\)"),
        ('{"schema": 3}', r"schema 3, this version reads 1 to 2; install the ssdistill that"),
        ('{"schema": 0}', r"schema 0, this version reads 1 to 2"),
        ('{"schema": 2, "stage": 3}', r"not a run record \(stage: expected text"),
    ],
)
def test_the_reason_stands_in_the_message(tmp_path, content, reason):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 1', "Expecting ',' delimiter"),
        ("[1]", "not a JSON object"),
        ('{"loss/total": 1.0}', "no step"),
        ('{"step": 1.5}', "step is not a whole number"),
        ('{"step": 1, "epoch": "x"}', "epoch is not a whole number"),
        ('{"step": 1, "loss/total": "x"}', "loss/total is not a number"),
        ('{"step": 1, "loss/total": 1e999}', "loss/total is not a number"),
        ('{"step": 1, "loss/total": NaN}', "NaN is not JSON"),
    ],
)
def test_what_a_line_lacks_stands_in_the_message(tmp_path, line, reason):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        read_metrics(tmp_path)
    assert f"line 1: damaged ({reason}" in str(caught.value)
