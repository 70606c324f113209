import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ssdistill.chain.stage_files import read_array, read_arrays, read_json
from ssdistill.errors import DamagedFile, UserError

JUNK = [b"", b"\0" * 64, b"text\n", b"\x93NUMPY", b"PK\x03\x04", b"[" * 5000, b"\xff\xfe", b"null"]


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def read_any_json(path):
    return read_json(path, lambda content: content["a"] == 1)


READERS = [
    read_any_json,
    lambda path: read_array(path, 2, "f"),
    lambda path: read_arrays(path, 1, "iu"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def test_what_was_written_is_read(path):
    path.write_text(json.dumps({"a": 1}))
    assert read_any_json(path) == {"a": 1}
    path.write_bytes(npy(np.ones((3, 2), np.float32)))
    assert read_array(path, 2, "f", 3).shape == (3, 2)
    path.write_bytes(npz(targets=np.arange(3), linear=np.arange(3)))
    assert sorted(read_arrays(path, 1, "iu")) == ["linear", "targets"]


@pytest.mark.parametrize("read", READERS, ids=["json", "npy", "npz"])
@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
def test_junk_is_damaged_and_named(path, read, content):
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged (") and "\n" not in message
    assert caught.value.path == path


@pytest.mark.parametrize("read", READERS, ids=["json", "npy", "npz"])
@pytest.mark.parametrize("number", range(8))
def test_a_file_cut_anywhere_is_damaged(path, read, number):
    whole = [b'{"a": 1}', npy(np.ones((9, 2))), npz(targets=np.arange(40))][READERS.index(read)]
    path.write_bytes(whole[: len(whole) * number // 8])
    with pytest.raises(DamagedFile):
        read(path)


@pytest.mark.parametrize("read", READERS, ids=["json", "npy", "npz"])
def test_what_is_no_file_is_told(path, read):
    with pytest.raises(DamagedFile, match="missing"):
        read(path)
    path.mkdir()
    with pytest.raises(DamagedFile, match="a folder"):
        read(path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("read", READERS, ids=["json", "npy", "npz"])
def test_a_named_pipe_is_not_waited_for(path, read):
    os.mkfifo(path)
    with pytest.raises(DamagedFile, match="not a file"):
        read(path)


@pytest.mark.parametrize(
    "array",
    [
        np.ones(3),
        np.ones((3, 2, 1)),
        np.ones((3, 2), int),
        np.ones((0, 2)),
        np.ones((4, 2)),
        np.array([["a"] * 2] * 3),
        np.array([[{}, {}]] * 3, object),
    ],
    ids=str,
)
def test_an_array_of_another_form_is_damaged(path, array):
    path.write_bytes(npy(array))
    with pytest.raises(DamagedFile):
        read_array(path, 2, "f", 3)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"a": np.arange(3), "b": np.arange(4)},
        {"a": np.ones((3, 1), int)},
        {"a": np.ones(3)},
        {"a": np.array([{}], object)},
    ],
    ids=str,
)
def test_arrays_of_another_form_are_damaged(path, arrays):
    path.write_bytes(npz(**arrays))
    with pytest.raises(DamagedFile):
        read_arrays(path, 1, "iu")


@pytest.mark.parametrize("content", ["[]", "3", '"a"', '{"a": 2}', "{}", '{"a": [1]}'])
def test_json_of_another_form_is_damaged(path, content):
    path.write_text(content)
    with pytest.raises(DamagedFile):
        read_any_json(path)


def test_json_is_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"a": "größer"}'.encode())
    code = (
        "import sys; from pathlib import Path; from ssdistill.chain.stage_files import read_json;"
        "content = read_json(Path(sys.argv[1]), lambda content: True);"
        "sys.exit(content != {'a': 'gr\\u00f6\\u00dfer'})"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
