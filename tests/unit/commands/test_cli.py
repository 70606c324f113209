import argparse
import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssdistill import __version__
from ssdistill.chain import run as chain_run
from ssdistill.chain.stages import Stage
from ssdistill.commands.main import _parser, main
from ssdistill.errors import UserError
from ssdistill.report.tables.models import Table
from ssdistill.settings.registry import LOSSES

TINY = """
schema: 1
name: tiny
data: digits
student: {}
pretrain: {kind: simclr, steps: 3, temperature: 0.3}
distill: {steps: 2, losses: {feature: {kind: simreg}}}
"""
CLAIM = """
paper:
  claims: [{metric: probe/linear/top1, model: distilled, better_than: control}]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Instead of running: what would have been run, and a report with two numbers."""
    calls = SimpleNamespace(experiments=[], roots=[], published=[], outcomes=[], error=None)
    calls.executors = []

    def run(experiment, root, executor):
        calls.executors.append(executor)
        calls.experiments.append(experiment)
        calls.roots.append(root)
        if calls.error:
            raise calls.error
        return SimpleNamespace(
            tables=[Table(("model", "top-1"), (("distilled", "71.5"),), "", "tiny")],
            notices=["only a smoke test"],
            folder=tmp_path / "tiny-12345678",
            models={"teacher": tmp_path / "a", "distilled": tmp_path / "b"},
            verdicts=[SimpleNamespace(outcome=outcome) for outcome in calls.outcomes],
            publish=calls.published.append,
        )

    monkeypatch.setattr(chain_run, "run", run)
    return calls


def one_error_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("command", [[], ["run"], ["reproduce"], ["report"], ["list"]])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {' '.join(['ssdistill', *command])}")


def test_every_option_of_every_command_is_explained():
    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = [(name, a) for name, parser in commands.choices.items() for a in parser._actions]
    assert len(options) > 20
    assert [(name, action.dest) for name, action in options if not action.help] == []


@pytest.mark.parametrize(("pixels", "known"), [("1", True), ("0", False), ("-4", False)])
def test_an_image_has_a_side_of_at_least_one_pixel(pixels, known):
    command = ["probe", "timm:x", "--data", "digits", f"--image-size={pixels}"]
    if known:
        assert _parser().parse_args(command).image_size == int(pixels)
    else:
        with pytest.raises(SystemExit):
            _parser().parse_args(command)


def test_the_help_of_probe_says_what_each_file_will_hold(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option, content in (
        ("json", "all results"),
        ("csv", "all metrics"),
        ("markdown", "tables"),
        ("page", "tables and charts (one HTML file)"),
    ):
        assert f"--{option} FILE write {content} to FILE" in text


def test_the_help_names_every_command_and_gives_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for word in ("run", "reproduce", "report", "list", "ssdistill run quickstart"):
        assert word in out
    assert "Distill, prune and quantize self-supervised vision encoders without labels." in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rn"],
        ["run"],
        ["run", "x", "--nonsense"],
        ["run", "x", "--runs", "r", "word"],
        ["list", "losses", "--what=x"],
        ["report", "name=x"],
    ],
)
def test_a_command_line_that_is_not_understood_has_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"ssdistill {__version__}"


def test_run_shows_tables_notices_and_where_the_report_is(config, ran, capsys, tmp_path):
    assert main(["run", config, "pretrain.steps=5", "--runs", str(tmp_path / "r")]) == 0
    (experiment,) = ran.experiments
    assert experiment.pretrain.steps == 5
    assert ran.roots == [tmp_path / "r"]
    out = capsys.readouterr().out
    assert "71.5" in out and "only a smoke test" in out
    assert f"report: {tmp_path / 'tiny-12345678' / 'report.html'}" in out
    assert f"distilled model: {tmp_path / 'b'}" in out
    assert ran.published == []


@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_a_cluster_and_a_remote_folder_are_passed_on(command, ran, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = "cifar10_cpu"  # which makes claims
    assert main([command, config, "--on", "ray", "--runs", "s3://bucket/runs"]) == 0
    assert main([command, config]) == 0
    assert [type(executor).__name__ for executor in ran.executors] == ["OnRay", "Serial"]
    assert ran.roots == ["s3://bucket/runs", Path("runs")]


def test_overrides_may_stand_on_both_sides_of_an_option(config, ran, tmp_path):
    root = str(tmp_path / "r")
    assert main(["run", config, "pretrain.steps=5", "--runs", root, "seeds=[4]", "name=x"]) == 0
    (experiment,) = ran.experiments
    assert (experiment.pretrain.steps, experiment.seeds, experiment.name) == (5, (4,), "x")


@pytest.mark.parametrize(
    "words",
    [
        ["{config}", "--pretrain.steps=5", "--runs", "{root}", "--seeds=[4]"],
        ["--pretrain.steps=5", "--seeds=[4]", "--runs={root}", "{config}"],
        ["{config}", "--pretrain.steps", "5", "--seeds", "[4]", "--runs", "{root}"],
        ["--pretrain.steps", "5", "--runs", "{root}", "{config}", "seeds=[4]"],
        ["{config}", '{{"pretrain.steps": 5, "seeds": [4]}}', "--runs", "{root}"],
        ["{config}", "++pretrain.steps=5", "+seeds=[4]", "--runs", "{root}"],
    ],
    ids=lambda words: " ".join(words),
)
def test_overrides_may_be_written_as_an_agent_of_a_sweep_does(config, ran, tmp_path, words):
    root = str(tmp_path / "r")
    words = [word.format(config=config, root=root) for word in words]
    assert main(["run", *words]) == 0
    (experiment,) = ran.experiments
    assert (experiment.pretrain.steps, experiment.seeds) == (5, (4,))
    assert ran.roots == [tmp_path / "r"]


def test_a_setting_that_does_not_exist_is_named_however_it_is_written(config, capsys):
    assert main(["run", config, "--pretrain.stepz=5"]) == 2
    assert "pretrain.stepz" in capsys.readouterr().err


def test_run_publishes_where_it_is_told(config, ran, tmp_path):
    assert main(["run", config, "--publish", str(tmp_path / "experiments")]) == 0
    assert ran.published == [tmp_path / "experiments"]


def test_what_an_override_made_meaningless_is_said_on_stderr(config, ran, capsys):
    assert main(["run", config, "pretrain.kind=byol"]) == 0
    assert "ignoring pretrain.temperature: " in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_runs_nothing(config, ran, monkeypatch, capsys):
    stage = Stage("teacher", "pretrain", {}, "f" * 64, 0)
    planned = [chain_run.PlannedStage(stage, "missing")]
    monkeypatch.setattr(chain_run, "dry_run", lambda experiment, root: planned)
    assert main(["run", config, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert stage.digest[:8] in out and "missing" in out
    assert ran.experiments == []


@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_a_missing_config_is_one_line_and_status_2(command, capsys):
    assert main([command, "quickstrt"]) == 2
    assert "did you mean 'quickstart'?" in one_error_line(capsys)


def test_an_error_of_the_users_is_one_line_and_status_2(config, ran, capsys):
    ran.error = UserError("batch_size=300 is more than the 24 images there are")
    assert main(["run", config]) == 2
    assert "batch_size=300" in one_error_line(capsys)


def test_an_error_of_ours_has_a_status_of_its_own_and_a_report(config, ran, capsys, tmp_path):
    ran.error = ZeroDivisionError("ours")
    assert main(["run", config, "pretrain.steps=7", "--runs", str(tmp_path)]) == 70
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    (report,) = tmp_path.glob("crash-*.txt")
    assert err.startswith("internal error: ZeroDivisionError: ours; ") and str(report) in err
    text = report.read_text()
    for part in ("pretrain.steps=7", "== versions", "torch ", "name: tiny", "Traceback (most rec"):
        assert part in text


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where_an_error_was_raised(config, ran, capsys, tmp_path, place):
    ran.error = ZeroDivisionError("ours")
    command = ["run", config, "--runs", str(tmp_path)]
    assert main(["--debug", *command] if place == "before" else [*command, "--debug"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and "internal error: ZeroDivisionError" in err.splitlines()[-1]
    ran.error = UserError("theirs")
    assert main([*command, "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1] == "error: theirs"


def caused(error, cause):
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left", "a/b"), "a/b: no space left", "free some"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission", "permissions"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only", "--runs"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a"), "a: Not a dir", "file away"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "a: Too many", "loop"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", "disk"),
        (MemoryError(), "not enough memory", "batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried…"), "not enough memory", "batch_size"),
        (torch.OutOfMemoryError("Allocation on device 0"), "not enough memory", "batch_size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate"),
            "not enough memory",
            "batch_size",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "no space left on the disk", "free some",
        ),
        (
            caused(RuntimeError("unexpected pos 12"), OSError(errno.EDQUOT, "Quota exceeded")),
            "no space left on the disk (unexpected pos 12)", "free some",
        ),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_one_line_with_a_remedy(
    config, ran, capsys, error, reason, remedy
):
    ran.error = error
    assert main(["run", config]) == 2
    err = one_error_line(capsys)
    assert err.startswith(f"error: {reason}") and remedy in err


def test_ctrl_c_has_status_130_and_says_how_to_go_on(config, ran, capsys):
    ran.error = KeyboardInterrupt()
    assert main(["run", config]) == 130
    err = capsys.readouterr().err
    assert "Run the same command to resume." in err and "Traceback" not in err


def test_reproduce_needs_claims(config, ran, capsys):
    assert main(["reproduce", config]) == 2
    assert "the config has no paper.claims" in one_error_line(capsys)
    assert ran.experiments == []


@pytest.mark.parametrize(
    "outcomes, status",
    [(["HOLDS", "HOLDS"], 0), (["HOLDS", "FAILS"], 1), (["HOLDS", "INCONCLUSIVE"], 3)],
)
def test_reproduce_tells_by_its_status_how_the_claims_fare(tmp_path, ran, outcomes, status):
    path = tmp_path / "claims.yaml"
    path.write_text(TINY + CLAIM)
    ran.outcomes = outcomes
    assert main(["reproduce", str(path)]) == status


def test_list_prints_every_loss(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["list", "losses"]) == 0
    out = capsys.readouterr().out
    for kind, cls in LOSSES.classes.items():
        assert kind in out and cls.paper.rsplit(", ", 1)[1] in out


def test_list_prints_every_table_when_nothing_is_named(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("losses", "methods", "steps", "sources", "views", "configs", "quickstart"):
        assert word in out


def test_list_of_an_unknown_word_has_status_2(capsys):
    assert main(["list", "loses"]) == 2
    assert "did you mean 'losses'?" in one_error_line(capsys)


@pytest.fixture
def published(tmp_path):
    """A folder with one record and a README that shows it."""
    folder = tmp_path / "experiments" / "digits"
    folder.mkdir(parents=True)
    record = {
        "experiment": "digits",
        "profile": "smoke",
        "model": "distilled",
        "seed": 0,
        "metrics": {"probe/linear/top1": 71.5},
        "provenance": {},
        "protocol": {},
    }
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    block = "<!-- results:begin digits -->\n<!-- results:end digits -->\n"
    (tmp_path / "README.md").write_text(f"# Title\n\n{block}\nThe end.\n")
    return tmp_path


def test_report_writes_tables_and_then_finds_them_right(published, capsys):
    assert main(["report", "--root", str(published)]) == 0
    text = (published / "README.md").read_text()
    assert "71.5" in text and text.endswith("The end.\n")
    assert "block 'digits' rewritten" in capsys.readouterr().out
    assert main(["report", "--check", "--root", str(published)]) == 0
    assert capsys.readouterr().out == ""


def test_report_check_finds_a_number_changed_by_hand_and_leaves_it(published, capsys):
    main(["report", "--root", str(published)])
    edited = (published / "README.md").read_text().replace("71.5", "91.5")
    (published / "README.md").write_text(edited)
    capsys.readouterr()
    assert main(["report", "--check", "--root", str(published)]) == 1
    out, err = capsys.readouterr()
    assert "README.md: block 'digits' differs from the records" in out
    assert "run `ssdistill report`" in err
    assert (published / "README.md").read_text() == edited


def test_report_names_a_block_without_records(published, capsys):
    (published / "experiments" / "digits" / "records.jsonl").unlink()
    assert main(["report", "--root", str(published)]) == 2
    assert "README.md: experiments/digits/records.jsonl" in one_error_line(capsys)
