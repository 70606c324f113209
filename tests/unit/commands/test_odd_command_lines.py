import os
import subprocess
import sys

import pytest

import ssdistill
from ssdistill.commands import failures
from ssdistill.commands import main as command
from ssdistill.commands.main import main
from ssdistill.compress import restore
from ssdistill.errors import UserError
from ssdistill.experiment import reading
from ssdistill.experiment.reading import load_experiment
from ssdistill.terminal.console import UNLIMITED, output_width


def error_of(capsys):
    lines = capsys.readouterr().err.splitlines()
    return lines[-1]


def test_a_home_that_nobody_has_is_one_line(capsys):
    for words in (["run", "~nobody-has-this-name/x.yaml"], ["restore", "~nobody-has-this-name/x"]):
        assert main(words) == 2
        assert "no home folder is known for ~" in error_of(capsys)


def test_what_goes_wrong_in_a_report_does_not_hide_what_it_reports(monkeypatch, tmp_path):
    def broken(path):
        raise RuntimeError("while reporting")

    monkeypatch.setattr(reading, "find_config", broken)
    report = failures.save_report(KeyError("the fault"), ["run", "x"], tmp_path)
    assert "the fault" in report.read_text()


def test_a_report_needs_neither_a_current_folder_nor_one_for_temporary_files(monkeypatch, tmp_path):
    def gone(*_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(failures.os, "getcwd", gone)
    assert "the fault" in failures.save_report(KeyError("the fault"), ["run"], tmp_path).read_text()
    monkeypatch.setattr(failures.tempfile, "gettempdir", gone)
    assert failures.save_report(KeyError("the fault"), ["run"], None) is None


def test_a_current_folder_that_was_deleted_is_said_to_be(monkeypatch, tmp_path, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["list", "losses"]) == 2
    error = error_of(capsys)
    assert error.startswith("error: the current folder cannot be found") and "cd to" in error


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (ValueError("torch cannot be imported"), 70, "internal error: ValueError: torch cannot"),
    ],
)
def test_what_happens_while_the_command_line_is_read_is_one_line(
    fault, status, words, monkeypatch, capsys
):
    def raising(*_):
        raise fault

    monkeypatch.setattr(command, "plain_overrides", raising)
    assert main(["run", "quickstart"]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(words)


def test_what_a_library_makes_of_an_interruption_is_one(monkeypatch, capsys):
    def raising(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise faults.pop()

    faults = [UserError("no disk space for the checkpoint"), RuntimeError("unexpected pos 8 vs 4")]
    monkeypatch.setattr(command, "_list", raising)
    assert main(["list", "losses"]) == 130
    assert capsys.readouterr().err == "Interrupted. Run the same command to resume.\n"
    assert main(["list", "losses"]) == 2
    assert capsys.readouterr().err == "error: no disk space for the checkpoint\n"


def test_torch_that_cannot_be_imported_is_one_line(tmp_path):
    environment = {**os.environ, "TORCH_LOGS": "nonsense", "TMPDIR": str(tmp_path)}
    for words in (["run", "quickstart"], ["list", "losses"]):
        done = subprocess.run(
            [sys.executable, "-m", "ssdistill", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 70, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("internal error: ") and str(tmp_path) in line


@pytest.mark.parametrize(
    "columns, width", [("9" * 5000, UNLIMITED), ("9" * 9, UNLIMITED), ("72", 72)]
)
def test_no_number_of_columns_is_too_many(columns, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert output_width() == width


def test_a_full_disk_under_the_output_is_named(capsys, monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        assert main(["list", "views"]) == 2
    assert error_of(capsys).startswith("error: standard output: no space left")


def test_tables_are_looked_for_where_there_are_some(tmp_path, capsys):
    file = tmp_path / "README.md"
    for root, words in (
        (tmp_path / "nowhere", "no such file or folder; check the path"),
        (tmp_path, "no README.md with a block"),
    ):
        for check in ([], ["--check"]):
            assert main(["report", "--root", str(root), *check]) == 2
            error = error_of(capsys)
            assert words in error and str(root) in error
    file.write_text("no table")
    assert main(["report", "--root", str(tmp_path)]) == 2
    assert main(["report", "--root", str(file)]) == 2
    file.write_bytes(b"caf\xe9")
    assert main(["report", "--root", str(tmp_path)]) == 2
    assert error_of(capsys).endswith(
        "README.md: cannot be read (not UTF-8 text); save it as UTF-8 text"
    )


def test_where_to_publish_is_tried_before_anything_is_run(tmp_path, capsys, monkeypatch):
    config = tmp_path / "x.yaml"
    config.write_text(
        "{schema: 1, name: x, data: digits, student: {}, pretrain: {kind: simclr, steps: 3}, "
        "distill: {steps: 2, losses: {feature: {kind: simreg}}}}"
    )
    assert main(["run", str(config), "--publish", str(config)]) == 2
    assert error_of(capsys).startswith(f"error: --publish {config}")
    with pytest.raises(UserError, match=r"no paper.claims to verify"):
        ssdistill.reproduce(config, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("override", [3, ["seeds=[0]"], {"seeds": [0]}, None])
def test_an_override_is_text(override, tmp_path):
    with pytest.raises(UserError, match=r"override .*expected text"):
        ssdistill.run("quickstart", override, root=tmp_path)


def test_settings_nested_without_end_are_one_line():
    for word in ('{"a": ' + "[" * 200_000, "name=None" + "-" * 200_000 + "1"):
        with pytest.raises(UserError) as raised:
            load_experiment("quickstart", [word])
        assert max(map(len, str(raised.value).splitlines())) < 500


def test_restore_says_which_folder_it_cannot_write_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(restore, "uncompressed_parent", lambda folder: tmp_path)
    assert main(["restore", "x", "--to", "/proc/nowhere/y"]) == 2
    assert error_of(capsys).startswith("error: --to /proc/nowhere/y/model.json: cannot be written")
