"""A few hundred cases of experiments/robustness, and proof that it detects failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "experiments" / "robustness" / "campaign.py"


def test_no_case_ends_in_a_traceback_a_hang_or_a_loss(tmp_path):
    # A slow machine tries fewer of them: what is missing is only more of the same.
    out = tmp_path / "records.jsonl"
    command = [sys.executable, str(PROGRAM), "--share", "0.03", "--seed", "11"]
    command += ["--seconds", "8", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert out.exists(), done.stderr[-3000:]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["family"] for record in records] == ["configs", "inputs", "runs", "kills"]
    for record in records:
        assert record["cases"] > 0
    # A slow machine has tried at least these of the 300 configs.
    assert records[0]["cases"] >= 30
    for record in records:
        assert record["verdicts"] == {"fine": record["cases"]}, done.stdout
    assert done.returncode == 0
    # Cases that all fail at the same place would try nothing.
    if records[0]["cases"] > 100:
        assert {"0", "2"} <= records[0]["statuses"].keys()


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


@pytest.mark.parametrize("verdict", CASES)
def test_of_many_cases_in_one_child_each_is_judged_for_itself(verdict):
    program = (
        f"import os, sys, time; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        "from forked import run_batch\n"
        "def work(number):\n    if number == 3:\n"
        f"        {CASES[verdict]}{', ' + repr('said') if verdict == 'fine' else ''}\n"
        "    return 0, 'said'\n"
        "for number, outcome in run_batch(work, range(2, 6), 1.0):\n"
        "    print(number, outcome.verdict)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = ["2 fine", f"3 {verdict}", "4 fine", "5 fine"]
    assert done.stdout.splitlines() == lines, done.stderr


def test_a_mutated_config_still_finds_those_it_extends(tmp_path):
    # Where it does not, every mutant is refused for the same reason.
    program = (
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        "from pathlib import Path\nimport campaign, mutations\n"
        "mutations.draw = lambda rng: []\ncampaign._is_planned = lambda *_: False\n"
        f"found = campaign.try_configs(range(200), 0, Path({str(tmp_path)!r}))\n"
        "print(sum('extends' in outcome.text for _, outcome in found))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["0"], done.stderr


def test_the_readme_has_the_table_of_the_record():
    program = (
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        "from table import FOLDER, with_table\n"
        "readme, records = ((FOLDER / n).read_text() for n in ('README.md', 'records.jsonl'))\n"
        "assert readme == with_table(readme, records)\n"
        "lines = records.splitlines()\n"
        "assert readme.partition('<!-- table')[2].count('\\n| `') == len(lines) > 0"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
