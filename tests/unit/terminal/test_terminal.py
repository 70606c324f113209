"""Closed pipes, outputs of every width and encoding, names with brackets."""

import os
import pty
import re
import subprocess
import sys

import pytest
from rich.text import Text

from ssdistill.terminal import console as terminal
from ssdistill.terminal.console import (
    UNLIMITED,
    complain,
    forgiving_streams,
    output_width,
    say,
    show,
)
from ssdistill.train.progress import ProgressConsole, TrainingProgress

COMMAND = [sys.executable, "-m", "ssdistill.commands.main"]


def environment(**changes):
    names = ("COLUMNS", "NO_COLOR", "TERM", "PYTHONIOENCODING")
    return {k: v for k, v in os.environ.items() if k not in names} | changes


@pytest.fixture
def broken_pipe(monkeypatch):
    """Standard output whose reader has left; no output of pytest is touched."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield stream


def test_head_ends_a_listing_without_error_and_without_noise():
    line = f"{' '.join(COMMAND)} list | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("losses")


def test_help_goes_to_head_as_well():
    line = f"{' '.join(COMMAND)} --help | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_keeps_its_own_status_when_the_reader_has_left(broken_pipe):
    with forgiving_streams():
        show("a table\n" * 10_000)
        say("a line")
        status = 3
    assert status == 3


def test_other_broken_pipes_are_not_mistaken_for_the_readers():
    with pytest.raises(BrokenPipeError), forgiving_streams():
        raise BrokenPipeError("of a worker process")


def test_a_listing_is_printed_whatever_the_output_is():
    changes = {"PYTHONIOENCODING": "ascii", "COLUMNS": "20", "NO_COLOR": "1"}
    done = subprocess.run(
        [*COMMAND, "list", "steps"], capture_output=True, text=True, env=environment(**changes)
    )
    assert done.returncode == 0 and done.stderr == ""
    assert {"prune", "quantize"} <= set(done.stdout.split())


def test_a_terminal_gets_lines_of_its_width_even_one_that_calls_itself_dumb():
    text = in_a_terminal([*COMMAND, "list", "steps"], 100, TERM="dumb", NO_COLOR="1")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in text.splitlines()]
    assert 80 < max(map(len, lines)) <= 100
    assert any(line.startswith("quantize") for line in lines) and "…" not in text


def in_a_terminal(command, columns, **changes):
    import fcntl
    import struct
    import termios

    controller, terminal_side = pty.openpty()
    fcntl.ioctl(terminal_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, stdout=terminal_side, stderr=terminal_side, env=environment(**changes)
    )
    os.close(terminal_side)
    parts = []
    try:
        while part := os.read(controller, 65536):
            parts.append(part)
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(controller)
    assert process.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("columns", "width"), [("100", 100), ("", UNLIMITED), ("0", UNLIMITED), ("wide", UNLIMITED)]
)
def test_columns_says_how_wide_a_pipe_is(columns, width, monkeypatch, broken_pipe):
    monkeypatch.setenv("COLUMNS", columns)
    assert output_width() == width


def test_brackets_are_printed_as_they_are(capsys):
    show(Text("[bold]"))
    show("[/red] [link=x]a[/link] :smile:")
    assert capsys.readouterr().out == "[bold]\n[/red] [link=x]a[/link] :smile:\n"


def test_a_program_without_standard_output_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with forgiving_streams():
        show("text")
        say("text")


def test_progress_shows_names_with_brackets_and_unicode(capsys, monkeypatch):
    console = ProgressConsole(stderr=True, markup=False, emoji=False, soft_wrap=True)
    monkeypatch.setattr("ssdistill.train.progress.console", console)
    with TrainingProgress("[/x] größer [bold]", 0, 10, 4, every_seconds=-1) as progress:
        progress.show(5, 0.25)
    assert "[/x] größer [bold]: 5/10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "width", "bars"), [("xterm", 80, True), ("dumb", 80, False), ("xterm", 20, False)]
)
def test_a_bar_needs_a_terminal_that_can_draw_it(kind, width, bars):
    console = ProgressConsole(
        force_terminal=True, width=width, height=25, _environ={"TERM": kind}, stderr=True
    )
    assert console.has_bars is bars


def test_progress_goes_on_in_silence_when_its_reader_has_left(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        console = ProgressConsole(stderr=True, highlight=False)
        for _ in range(3):
            console.print("a line")
        assert console.quiet


def test_progress_goes_on_in_silence_when_its_disk_is_full(monkeypatch):
    with open("/dev/full", "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        console = ProgressConsole(stderr=True, highlight=False)
        for _ in range(3):
            console.print("a line")
        assert console.quiet


def test_a_complaint_that_nothing_takes_ends_no_command(monkeypatch, capsys):
    complain("a line")
    assert capsys.readouterr().err == "a line\n"
    with open("/dev/full", "w") as stream, monkeypatch.context() as patched:
        for place in (stream, None):
            patched.setattr(sys, "stderr", place)
            complain("a line")


def test_mute_throws_away_what_is_written(tmp_path):
    with open(tmp_path / "file", "w") as stream:
        terminal.mute(stream)
        stream.write("text")
    assert (tmp_path / "file").read_text() == ""
