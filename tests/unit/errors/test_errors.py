"""Messages of one line, and errors that travel between processes."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssdistill.commands.main import main
from ssdistill.errors import (
    DamagedFile,
    StoppedEarly,
    UserError,
    is_out_of_memory,
    no_file,
    one_line,
    shortened,
    shown,
    system_reason,
    was_interrupted,
)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("short", 60, "short"),
        ("x" * 60, 60, "x" * 60),
        ("x" * 61, 60, "x" * 59 + "…"),
        ("abcdef", 4, "abc…"),
        ("two\n lines\tand  a gap ", 60, "two lines and a gap"),
        ("bell \a, zero \0", 60, r"bell \x07, zero \0"),
        ("half \udc80", 60, r"half \udc80"),
        ("éß 画像", 60, "éß 画像"),
        (Path("a/b"), 60, "a/b"),
        (b"bytes", 60, "b'bytes'"),
        ("", 60, ""),
    ],
)
def test_a_text_is_one_printable_line_of_a_limited_length(text, most, expected):
    assert shortened(text, most) == expected
    assert len(shortened(text, most)) <= most and shortened(text, most).isprintable()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cat.png", "cat.png"), ("a\nb", r"a\nb"), ("画.png", "画.png"), ("\x1b[2J", r"\x1b[2J")],
)  # fmt: skip
def test_a_name_with_what_cannot_be_printed_is_escaped(name, expected):
    assert shown(name) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("first\n  second"), "first second"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n "), "RuntimeError"),
        (ValueError("y" * 201), "y" * 200),
    ],
)
def test_an_error_of_a_library_becomes_one_line(error, expected):
    assert one_line(error) == expected


def test_a_damaged_file_names_itself_the_reason_and_the_remedy():
    error = DamagedFile(Path("runs/teacher/s0/run.json"), "checksum\ndiffers")
    assert str(error) == (
        "runs/teacher/s0/run.json: damaged (checksum differs); move the stage's folder away and "
        "run the same command again: the stage is then recomputed"
    )
    assert isinstance(error, UserError)
    assert len(DamagedFile(Path("x"), "r" * 500).reason) == 200


def test_a_damaged_file_arrives_in_another_process_as_it_was():
    error = DamagedFile(Path("runs/a"), "no weights")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is DamagedFile
    assert (arrived.path, arrived.reason, str(arrived)) == (error.path, error.reason, str(error))


def test_an_error_of_the_user_is_one_line_without_a_traceback(capsys, tmp_path):
    assert main(["run", str(tmp_path / "nowhere.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "nowhere.yaml" in told and "Traceback" not in told


def test_a_missing_file_is_told_with_the_key_before_it_and_what_to_do():
    assert no_file("data.root=photos") == (
        "data.root=photos: no such file or folder; check the path"
    )
    assert no_file("a.pth", "download it", " (1 other)") == (
        "a.pth: no such file or folder (1 other); download it"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "gone", "x.png"), "no such file or folder"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x.png"), "Permission denied"),
        (OSError("truncated\nfile"), "truncated file"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_reason_of_the_system_has_no_file_name(error, reason):
    assert system_reason(error) == reason


def test_stopping_a_training_early_is_no_failure():
    with pytest.raises(StoppedEarly, match="after 10 steps"):
        try:
            raise StoppedEarly("after 10 steps")
        except Exception:  # what a library catches
            pytest.fail("caught as a failure")


def test_ctrl_c_is_found_behind_what_a_library_made_of_it():
    assert was_interrupted(KeyboardInterrupt())
    assert not was_interrupted(RuntimeError("worker died")) and not was_interrupted(None)
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("worker died") from error
    except RuntimeError as error:
        assert was_interrupted(error)
    try:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("on the way out")
    except RuntimeError as error:
        assert error.__cause__ is None and was_interrupted(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_errors_are_told_where_torch_cannot_be_imported():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from ssdistill.errors import is_out_of_memory\n"
        "print(is_out_of_memory(MemoryError()), is_out_of_memory(ValueError()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr
