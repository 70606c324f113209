"""Parts of recorded outputs: complete or absent, whatever happens, and made once."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssdistill.distill.cache import parts as parts_module
from ssdistill.distill.cache.filling import fill_parts
from ssdistill.distill.cache.parts import OUTPUTS, Held, Parts, check_free
from ssdistill.errors import UserError

NUM_IMAGES, WIDTH, PASSES = 10, 3, 2


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "ROWS", 4)
    return opened(tmp_path / "cache")


def opened(folder):
    parts = Parts(folder, PASSES, NUM_IMAGES, WIDTH)
    parts.create({"seed": 0})
    return parts


def make(number, rows_N):
    return (100 * number + rows_N[:, None] + np.arange(WIDTH) / 4).astype(np.float16).view(np.int16)


def everything():
    rows = [make(number, np.arange(NUM_IMAGES)) for number in range(PASSES)]
    return np.concatenate(rows).view(np.float16)


def fill_all(parts, make=make, say=lambda line: None):
    missing = [part for part, status in enumerate(parts.statuses()) if status != "complete"]
    fill_parts(parts, missing, make, "filling", say)


def test_every_row_is_where_it_is_looked_for(parts):
    assert [parts.place(part) for part in range(len(parts))] == [
        *((0, 0, 4), (0, 4, 8), (0, 8, 10)),
        *((1, 0, 4), (1, 4, 8), (1, 8, 10)),
    ]
    assert parts.statuses() == ["absent"] * 6
    fill_all(parts)
    assert parts.statuses() == ["complete"] * 6
    assert np.array_equal(parts.rows(), everything())
    assert parts.num_bytes == (parts.folder / OUTPUTS).stat().st_size == 120


def test_a_fill_that_ends_early_goes_on_where_it_was(parts):
    made = []

    def failing(number, rows_N):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((number, rows_N[0]))
        return make(number, rows_N)

    with pytest.raises(KeyboardInterrupt):
        fill_all(parts, failing)
    assert parts.statuses() == ["complete"] * 3 + ["absent"] * 3
    again = []
    fill_all(opened(parts.folder), lambda n, rows: again.append((n, rows[0])) or make(n, rows))
    assert again == [(1, 0), (1, 4), (1, 8)]
    assert np.array_equal(parts.rows(), everything())


def test_rows_without_their_checksum_are_absent(parts, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            fill_all(parts)
    assert np.array_equal(parts.rows()[:4], everything()[:4])
    assert parts.statuses() == ["absent"] * 6


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_in_its_part_alone(parts, bit):
    fill_all(parts)
    content = bytearray((parts.folder / OUTPUTS).read_bytes())
    content[2 * WIDTH * (NUM_IMAGES + 5)] ^= 1 << bit
    (parts.folder / OUTPUTS).write_bytes(content)
    assert parts.statuses() == ["complete"] * 4 + ["damaged", "complete"]
    made = []
    fill_all(parts, lambda n, rows: made.append((n, rows[0])) or make(n, rows))
    assert made == [(1, 4)]
    assert parts.statuses() == ["complete"] * 6
    assert np.array_equal(parts.rows(), everything())


@pytest.mark.parametrize("mark", ["", "{", "[]", '{"crc32": "x"}', "null", "[" * 10_000, "\0"])
def test_a_checksum_that_is_none_is_damage(parts, mark):
    fill_all(parts)
    (parts.folder / "parts" / "000002.json").write_text(mark)
    assert parts.statuses()[2] == "damaged"


def test_a_file_cut_off_is_made_whole_again(parts):
    fill_all(parts)
    content = (parts.folder / OUTPUTS).read_bytes()
    (parts.folder / OUTPUTS).write_bytes(content[:70])
    again = opened(parts.folder)
    assert again.statuses() == ["complete"] * 3 + ["damaged"] * 3
    fill_all(again)
    assert np.array_equal(again.rows(), everything())


def test_something_else_in_the_place_of_the_rows_is_refused(parts):
    (parts.folder / OUTPUTS).unlink()
    (parts.folder / OUTPUTS).mkdir()
    with pytest.raises(UserError, match="expected a file; remove"):
        opened(parts.folder)


def test_several_fill_at_once_and_make_every_part_once(parts):
    made = []

    def slow(number, rows_N):
        made.append((number, rows_N[0]))
        time.sleep(0.05)
        return make(number, rows_N)

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(fill_all, opened(parts.folder), slow) for _ in range(3)]
        for future in done:
            future.result()
    assert len(made) == len(set(made)) == 6
    assert np.array_equal(parts.rows(), everything())
    assert not list((parts.folder / "parts").glob("*.lock"))


def test_a_part_that_another_process_makes_is_left_to_it(parts):
    said, made = [], []
    with ThreadPoolExecutor(1) as pool:
        with parts.locked(1):
            with pytest.raises(Held), opened(parts.folder).locked(1):
                pass
            made_by_other = lambda n, rows: made.append(rows[0]) or make(n, rows)  # noqa: E731
            future = pool.submit(fill_all, opened(parts.folder), made_by_other, said.append)
            while len(said) == 0:
                time.sleep(0.01)
            assert 4 not in made[:3] and len(made) == 5
            parts.write(1, make(0, np.arange(4, 8)))
        future.result()
    assert len(made) == 5 and len(said) == 1
    assert "waiting for another process to record the rest" in said[0]
    assert np.array_equal(parts.rows(), everything())


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from ssdistill.distill.cache import parts as parts_module
parts_module.ROWS = 4
from test_cache_parts import fill_all, make, opened
count = 0
def slow(number, rows):
    global count
    count += 1
    if count == 3:
        print("now", flush=True)
        time.sleep(60)
    return make(number, rows)
fill_all(opened(Path(sys.argv[1])), slow)
"""


def test_a_kill_loses_one_part_and_its_lock(parts):
    command = [sys.executable, "-c", KILLED, str(parts.folder), __file__.rpartition("/")[0]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.wait()
    assert parts.statuses() == ["complete"] * 2 + ["absent"] * 4
    fill_all(parts)
    assert np.array_equal(parts.rows(), everything())


def test_the_wrong_number_of_rows_is_not_written(parts):
    with pytest.raises(ValueError, match="part 2"):
        parts.write(2, make(0, np.arange(4)))
    assert parts.statuses()[2] == "absent"


def test_a_disk_that_is_too_small_is_said(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("ssdistill.distill.cache.parts.shutil.disk_usage", lambda folder: usage)
    check_free(tmp_path / "runs" / "teacher_outputs", 1000)
    with pytest.raises(UserError, match=r"distill\.cache: .*lower cache\.views"):
        check_free(tmp_path / "runs", 1001, "distill.cache")
    with pytest.raises(UserError, match="GB are free"):
        Parts(tmp_path / "cache", 2, 1000, 3).create({})


def test_the_key_is_written_once_and_kept(parts):
    assert json.loads((parts.folder / "key.json").read_text()) == {"seed": 0}
