"""A few hundred cases of the campaign in experiments/robustness, and that it sees failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "experiments" / "robustness" / "campaign.py"


def campaign(tmp_path, family, count, seed=11, seconds=40):
    out = tmp_path / "records.jsonl"
    command = [sys.executable, str(PROGRAM), "--family", family, "--count", str(count)]
    command += ["--seed", str(seed), "--seconds", str(seconds), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text()), done


@pytest.mark.parametrize(
    ("family", "count"), [("configs", 200), ("inputs", 40), ("runs", 4), ("kills", 2)]
)
def test_no_case_ends_in_a_traceback_a_hang_or_a_loss(tmp_path, family, count):
    record, done = campaign(tmp_path, family, count)
    assert record["cases"] > 0 and record["verdicts"] == {"fine": record["cases"]}, done.stdout
    assert done.returncode == 0
    # Cases that all fail at the same place would try nothing.
    assert family != "configs" or {"0", "2"} <= record["statuses"].keys()


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
