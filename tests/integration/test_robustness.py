"""A few hundred cases of the campaign in experiments/robustness, and that it sees failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "experiments" / "robustness" / "campaign.py"


def campaign(tmp_path, family, count, seconds, seed=11):
    out = tmp_path / "records.jsonl"
    command = [sys.executable, str(PROGRAM), "--family", family, "--count", str(count)]
    command += ["--seed", str(seed), "--seconds", str(seconds), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text()), done


@pytest.mark.parametrize(
    ("family", "count", "seconds"),
    [("configs", 300, 20), ("inputs", 60, 12), ("runs", 4, 8), ("kills", 2, 8)],
)
def test_no_case_ends_in_a_traceback_a_hang_or_a_loss(tmp_path, family, count, seconds):
    # A slow machine tries fewer of them: what is missing is only more of the same.
    record, done = campaign(tmp_path, family, count, seconds)
    assert record["cases"] > 0 and record["verdicts"] == {"fine": record["cases"]}, done.stdout
    assert done.returncode == 0
    # Cases that all fail at the same place would try nothing.
    if family == "configs" and record["cases"] > 50:
        assert {"0", "2"} <= record["statuses"].keys()


CASES = {
    "traceback": "raise ZeroDivisionError",
    "hang": "time.sleep(60)",
    "died": "os.kill(os.getpid(), 11)",
    "fine": "return 2",
}


@pytest.mark.parametrize("verdict", CASES)
def test_a_case_that_goes_wrong_is_seen(verdict):
    program = (
        f"import os, sys, time; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        f"from forked import run_case\ndef work():\n    {CASES[verdict]}\n"
        "print(run_case(work, 1.0).verdict)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [verdict], done.stderr
