"""Encoded images in LMDB databases."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import lmdb
import numpy as np
import pytest
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.lmdb_file import Keys
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.sources.lmdb import Lmdb
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

RGB = np.random.default_rng(0).integers(0, 256, (12, 12, 9, 3), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


ENCODED = [png(image) for image in RGB]
NUMBERED = {b"%08d" % number: data for number, data in enumerate(ENCODED)}


@pytest.fixture
def write(tmp_path):
    number = count()

    def make(values=NUMBERED, name=None, subdir=True, **settings):
        # One that is open cannot be opened again to write.
        path = tmp_path / (name or f"db{next(number)}")
        environment = lmdb.open(str(path), 1 << 24, subdir=subdir)
        with environment, environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
        return Lmdb(path=str(path), **settings)

    return make


def read(part):
    return np.stack([part.image(i) for i in range(len(part))])


@pytest.mark.parametrize("subdir", [True, False])
@pytest.mark.parametrize("key", [None, "%08d"])
def test_images_are_those_that_were_written(write, subdir, key):
    source = write(subdir=subdir, image_key=key, test_fraction=0)
    assert np.array_equal(read(source.split("train")), RGB)
    assert source.split("train").name(3) == "00000003"


def test_a_pattern_may_begin_at_one_and_leave_other_keys_alone(write):
    values = {b"image-%09d" % (n + 1): data for n, data in enumerate(ENCODED[:9])}
    values |= {b"label-000000001": b"3", b"num-samples": b"9"}
    part = write(values, image_key="image-%09d", test_fraction=0).split("train")
    assert len(part) == 9 and np.array_equal(read(part), RGB[:9])
    with pytest.raises(UserError, match="no key 'x-0'"):
        write(values, image_key="x-%d").split("train")
    for pattern in ("image", "%s%s", "%q", "%08d%08d"):
        with pytest.raises(UserError, match="pattern of one number"):
            write(values, image_key=pattern).split("train")


def test_keys_are_read_from_a_list_in_its_order(write, tmp_path):
    (tmp_path / "keys.txt").write_bytes(b"00000005\r\n00000001\n\n00000009\n")
    source = write(key_list=str(tmp_path / "keys.txt"), test_fraction=0)
    assert np.array_equal(read(source.split("train")), RGB[[5, 1, 9]])
    (tmp_path / "keys.txt").write_bytes(b"00000005\nnone\n")
    part = write(key_list=str(tmp_path / "keys.txt"), test_fraction=0).split("train")
    with pytest.raises(BadImage, match="its key is not in the database"):
        part.image(1)
    with pytest.raises(UserError, match=r"data.image_key=.* and data.key_list=.* are both set"):
        write(key_list=str(tmp_path / "keys.txt"), image_key="%d").split("train")
    (tmp_path / "keys.txt").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"keys.txt: the file is empty"):
        write(key_list=str(tmp_path / "keys.txt")).split("train")


def test_metadata_is_no_image(write):
    values = NUMBERED | {b"__keys__": b"x", b"__len__": b"y", b"length": b"12"}
    assert len(write(values, test_fraction=0).split("train")) == 12


def test_another_database_may_hold_the_test_images(write, tmp_path):
    test = write(dict(list(NUMBERED.items())[:5]), name="test")
    for name, labels in {"a": np.arange(12) % 3, "b": np.arange(5) % 3}.items():
        np.save(tmp_path / f"{name}.npy", labels)
    paths = {"label_path": str(tmp_path / "a.npy"), "test_label_path": str(tmp_path / "b.npy")}
    source = write(test_path=test.path, **paths)
    assert (len(source.split("train")), len(source.split("test"))) == (12, 5)
    assert source.has_labels and source.split("test").labels().tolist() == [0, 1, 2, 0, 1]
    assert not write(test_path=test.path, label_path=paths["label_path"]).has_labels
    held = write(label_path=paths["label_path"]).split("test")
    assert held.labels().tolist() == [int(held.name(i)) % 3 for i in range(len(held))]


def test_originals_and_stored_squares_are_the_same(write, tmp_path):
    source = write()
    settings = SOURCES.schema("lmdb")(path=source.path, pixels="original")
    stores = open_stores(open_source(settings), settings, 8, tmp_path / "data")
    stored = open_store(source, "train", 8, tmp_path / "data")
    assert np.array_equal(stores["train"].images[:], stored.images)


def test_threads_forks_pickles_and_second_openings_read_alike(write):
    part = write(test_fraction=0).split("train")
    expected = [part.read(i) for i in range(12)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(part.read, [i % 12 for i in range(480)])) == expected * 40
    assert pickle.loads(pickle.dumps(part)).read(4) == expected[4]
    assert (
        Lmdb(path=part.title.split(" (")[0], test_fraction=0).split("train").read(2) == ENCODED[2]
    )
    opened = part._records._file._environment()
    end, start = os.pipe()
    child = os.fork()
    if not child:
        try:
            same = [part.read(i) for i in range(12)] == expected
            # Opened again, not what the parent opened.
            own = part._records._file._environment() is not opened
            os.write(start, b"y" if same and own else b"n")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(start)
    assert os.read(end, 1) == b"y"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pickle.dumps((b"image", 3)), "a pickle, which is never unpickled"),
        (pickle.dumps([1], protocol=0), "a pickle"),
        (b"\x82\xa4data\xc4\x02\xff\xd8\xa1y\x03", "msgpack, not an image"),
        (b"\x92\x01\x02", "msgpack"),
    ],
)
def test_values_that_wrap_an_image_are_refused_at_once(write, value, words):
    with pytest.raises(UserError, match=words):
        write(dict.fromkeys(NUMBERED, value)).split("train")
    first = dict.fromkeys(NUMBERED, value) | {b"00000000": ENCODED[0]}
    with pytest.raises(BadImage, match=words):
        write(first, test_fraction=0, name="second").split("train").image(1)


@pytest.mark.parametrize("change", ["cut", "text", "empty", "folder", "pipe", "gone"])
def test_what_is_no_database_is_refused_in_one_line(write, tmp_path, change):
    source = write(name="db.mdb", subdir=False)
    path = tmp_path / "db.mdb"
    if change == "cut":
        os.truncate(path, 16384)
    else:
        path.unlink()
        {
            "text": lambda: path.write_text("x" * 9000),
            "empty": path.touch,
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "gone": lambda: None,
        }[change]()
    with pytest.raises(UserError, match=r"db.mdb: ") as caught:
        source.split("train")
    assert "\n" not in str(caught.value)
    assert change != "cut" or "truncated to 16384 of" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("empty", "no data.mdb in this folder"), ("none", "no such file or folder")]
)
def test_what_is_not_there_is_said(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name}: {words}; pass an LMDB database"):
        Lmdb(path=str(tmp_path / name)).split("train")


def test_an_empty_database_has_no_images(write):
    with pytest.raises(UserError, match="has no images"):
        write({b"length": b"0"}).split("train")


def test_keys_take_no_object_each():
    keys = Keys(b"%07d" % n for n in range(5000))
    assert len(keys) == 5000 and keys[4321] == b"0004321"
    assert len(keys._content) == 35_000 and keys._end_N.nbytes == 8 * 5001
    mixed = Keys([b"a", b"", b"long"])
    assert [mixed[row] for row in range(3)] == [b"a", b"", b"long"]
