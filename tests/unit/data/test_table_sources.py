import io
import os
import pickle
import struct
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ssdistill.data import parquet_shard
from ssdistill.data.bad_image import BadImage
from ssdistill.data.opening import open_stores
from ssdistill.data.parquet_shard import GroupCache
from ssdistill.data.sources.tables import Arrow, Parquet
from ssdistill.data.table_layout import find_files
from ssdistill.data.table_split import row_keys
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def table(levels, **columns):
    return pa.table({"image": [png(level) for level in levels], **columns})


def write(path, content, rows=4, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(content, path, row_group_size=rows, **settings)
    else:
        new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, new(file, content.schema, **settings) as writer:
            writer.write_table(content, max_chunksize=rows)
    return path


def source(path, **settings):
    parquet = settings.pop("parquet", False) or ".parquet" in str(path)
    kind = Parquet if parquet else Arrow
    return kind(path=str(path), **settings)


def levels(split):
    return [int(split.image(i)[0, 0, 0]) for i in range(len(split))]


SUFFIXES = pytest.mark.parametrize("suffix", ["arrow", "feather", "parquet"])


@SUFFIXES
def test_rows_are_images_with_labels(tmp_path, suffix):
    content = table(range(10), label=[k % 3 for k in range(10)])
    found = source(write(tmp_path / f"a.{suffix}", content), test_fraction=0)
    train = found.split("train")
    assert levels(train) == list(range(10))
    assert train.labels().tolist() == [k % 3 for k in range(10)]
    assert train.class_names is None
    assert train.name(4) == f"a.{suffix}:4"
    assert f"a.{suffix}, unlabeled, 10 train and 0 test images" in found.description
    assert train.encoded() is train


@SUFFIXES
def test_structs_of_bytes_and_path_are_images_and_names_come_from_the_schema(tmp_path, suffix):
    features = (
        b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    )
    rows = [{"bytes": png(k), "path": "x.png"} for k in range(4)] + [
        {"bytes": None, "path": "/etc"}
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    content = pa.table({"img": pa.array([*rows, None], kind), "label": [0, 1, 0, 1, 0, 1]})
    content = content.replace_schema_metadata({b"huggingface": features})
    train = source(write(tmp_path / f"a.{suffix}", content), test_fraction=0).split("train")
    assert [int(train.image(i)[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    assert train.class_names == ("cat", "dog")
    with pytest.raises(BadImage, match="a path without bytes"):
        train.read(4)
    with pytest.raises(BadImage, match=r"its row has no image|a path without bytes"):
        train.read(5)


@SUFFIXES
def test_files_named_as_splits_are_splits(tmp_path, suffix):
    for name, values in (("train-00000-of-00002", [1, 2]), ("train-00001-of-00002", [3]),
                         ("validation-00000-of-00001", [4, 5]), ("extra", [6])):  # fmt: skip
        write(tmp_path / f"{name}.{suffix}", table(values, label=[f"c{k}" for k in values]))
    found = source(tmp_path, parquet=suffix == "parquet")
    train, test = found.split("train"), found.split("test")
    assert (levels(train), levels(test)) == ([1, 2, 3], [4, 5])
    assert (train.labels().tolist(), test.labels().tolist()) == ([0, 1, 2], [3, 4])
    assert train.class_names == ("c1", "c2", "c3", "c4", "c5")
    assert f"ignoring 1 files (first: extra.{suffix})" in found.warnings(True)[0]
    given = source(
        tmp_path / f"train-*.{suffix}", test_path=str(tmp_path / f"extra.{suffix}"),
        parquet=suffix == "parquet",
    )  # fmt: skip
    assert (levels(given.split("train")), levels(given.split("test"))) == ([1, 2, 3], [6])
    assert given.has_labels
    with pytest.raises(UserError, match=r"gone-.*: no such file or folder; pass a file"):
        source(tmp_path / f"gone-*.{suffix}", parquet=suffix == "parquet").split("train")


def test_held_out_rows_follow_from_numbers_and_are_on_one_side(tmp_path):
    path = write(tmp_path / "a.arrow", table(range(50)))
    train, test = (source(path, test_fraction=0.3).split(name) for name in ("train", "test"))
    assert len(test) == 15
    assert sorted(levels(train) + levels(test)) == list(range(50))
    again = write(tmp_path / "b" / "a.arrow", table(range(100, 150)))
    moved = source(again, test_fraction=0.3).split("test")
    assert [level - 100 for level in levels(moved)] == levels(test)
    assert levels(test) != list(range(15))


def test_keys_of_rows_are_spread_and_differ_between_tables():
    key_N = row_keys("a", 100_000)
    assert len(np.unique(np.concatenate([key_N, row_keys("b", 100_000)]))) == 200_000
    assert abs(np.mean(key_N < np.uint64(1 << 63)) - 0.5) < 0.01
    assert np.array_equal(row_keys("a", 10), key_N[:10])


@SUFFIXES
def test_stamps_change_with_the_file_and_the_row(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", table(range(8)))
    before = source(path, test_fraction=0).split("train")
    assert before.stamps().dtype == np.uint64
    assert len(set(before.stamps().tolist())) == 8
    same = source(path, test_fraction=0).split("train")
    assert np.array_equal(before.stamps(), same.stamps())
    assert before.identity() == same.identity()
    assert source(path, test_fraction=0.5).split("train").identity() != before.identity()
    os.utime(path, ns=(1, 1))
    after = source(path, test_fraction=0).split("train")
    assert not set(before.stamps().tolist()) & set(after.stamps().tolist())
    assert after.identity() != before.identity()


@SUFFIXES
def test_originals_and_stores_are_opened(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", table(range(40), label=[k % 2 for k in range(40)]))
    for pixels in ("original", "stored"):
        settings = SOURCES.schema("parquet" if suffix == "parquet" else "arrow")(
            path=str(path), pixels=pixels
        )
        found = SOURCES.build(settings)
        stores = open_stores(found, settings, 8, tmp_path / "stores")
        images = np.asarray(stores["train"].images[:])
        assert sorted(images[:, 0, 0, 0].tolist()) == sorted(levels(found.split("train")))
        assert len(stores["train"].labels) == 32


def test_columns_are_chosen_or_named(tmp_path):
    content = pa.table({"a": [png(1)], "b": [png(2)], "n": [1], "y": ["x"]})
    path = write(tmp_path / "a.arrow", content)
    with pytest.raises(UserError, match=r"several columns hold bytes \(a, b\); set data\.column"):
        source(path).split("train")
    assert levels(source(path, column="b").split("train")) == [2]
    with pytest.raises(UserError, match=r"data\.column=n: it is int64, not bytes"):
        source(path, column="n").split("train")
    with pytest.raises(UserError, match=r"data\.column=bb: no such column.*it has a \(binary\)"):
        source(path, column="bb").split("train")
    with pytest.raises(UserError, match=r"data\.label_column=z: no such column"):
        source(path, column="a", label_column="z").split("train")
    assert not source(path, column="a", label_column="none").split("train").labeled
    numbers = write(tmp_path / "n.arrow", pa.table({"x": [[1, 2]]}))
    with pytest.raises(UserError, match=r"no column holds encoded images .*x \(list"):
        source(numbers).split("train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], "1 of 2 images have no label (first: a.arrow:1)"),
        ([0, -1], "1 of 2 are negative"),
        ([[0], [1, None]], "the labels of a.arrow:1 (1, ) have an empty label between others"),
        ([[0, 1, 1], [0, 1]], "lists of 2 to 3 values 0 and 1, which are neither"),
        ([b"a", b"b"], "column 'label' is binary, not text or numbers"),
    ],
)
def test_labels_that_no_probe_can_use_are_refused_when_they_are_read(tmp_path, labels, message):
    path = write(tmp_path / "a.arrow", table(range(2), label=labels))
    train = source(path, column="image").split("train")
    assert len(train) == 2
    with pytest.raises(UserError) as caught:
        train.labels()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_those_of_the_rows_that_are_left(tmp_path):
    path = write(tmp_path / "a.parquet", table(range(30), label=list(range(30))))
    found = source(path, test_fraction=0.4)
    for name in ("train", "test"):
        assert found.split(name).labels().tolist() == levels(found.split(name))


def test_row_groups_are_kept_up_to_a_size():
    loaded = []

    def load(key):
        loaded.append(key)
        return [pa.array([b"x" * 100])]

    size = load(0)[0].nbytes
    loaded.clear()
    cache = GroupCache(2 * size)
    for key in (1, 2, 1, 3, 1, 2):
        cache.get(("a", key), lambda key=key: load(key))
    assert loaded == [1, 2, 3, 2]
    GroupCache(0).get(("a", 1), lambda: load(1))


def test_files_of_one_name_have_images_of_different_names(tmp_path):
    for folder in "ab":
        write(tmp_path / folder / "t.arrow", table(range(3)))
    (tmp_path / "a" / "cache-1.arrow").write_bytes(b"")
    (tmp_path / "a" / ".hidden.arrow").write_bytes(b"")
    files = find_files([str(tmp_path / "a"), str(tmp_path / "b")], [".arrow"])
    assert [name for name, _ in files] == ["t.arrow", "1/t.arrow"]


# Hostile files


def refusal(path, **settings):
    with pytest.raises(UserError) as caught:
        split = source(path, **settings).split("train")
        split.read(0)
        split.labels()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@SUFFIXES
def test_what_is_no_table_is_named_in_one_line(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    whole = write(path, table(range(8))).read_bytes()
    for content in (
        b"",
        b"hello",
        whole[: len(whole) // 2],
        whole[:20],
        b"ARROW1\0\0",
        b"\xff" * 99,
    ):
        path.write_bytes(content)
        try:
            split = source(path, test_fraction=0).split("train")
            for row in range(len(split)):
                split.read(row)
        except (UserError, BadImage) as error:
            assert "\n" not in str(error)
        else:
            # A stream has no end of its own: what is whole of it is read.
            assert suffix != "parquet"
            assert len(split) < 8
    path.unlink()
    assert "no such file or folder; check the path" in refusal(path)
    os.mkfifo(path)
    assert "a named pipe, not a regular file" in refusal(path)


@SUFFIXES
@pytest.mark.parametrize("in_struct", [True, False])
def test_no_byte_of_a_table_ends_the_process(tmp_path, suffix, in_struct):
    path = tmp_path / f"a.{suffix}"
    content = table(range(6), label=list(range(6)))
    if in_struct:
        images = [{"bytes": png(k), "path": f"x{k}"} for k in range(6)]
        content = pa.table({"image": images, "label": ["a", "b"] * 3})
    whole = bytearray(write(path, content).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = whole.copy()
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            split = source(path, test_fraction=0).split("train")
            for row in range(min(len(split), 10)):
                with suppress(BadImage):
                    split.image(row)
            if split.labeled:
                split.labels()
        except UserError as error:
            assert "\n" not in str(error)


def test_offsets_that_lead_out_of_the_file_are_refused(tmp_path):
    path = write(tmp_path / "a.arrow", pa.table({"image": [b"abcdefg", b"hijklmn"]}))
    content = path.read_bytes()
    offsets = struct.pack("<3i", 0, 7, 14)
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, struct.pack("<3i", 0, 7, 1 << 30)))
    assert "cannot read this file" in refusal(path)
    path.write_bytes(content.replace(offsets, struct.pack("<3i", 0, -7, 14)))
    assert "cannot read this file" in refusal(path)


def test_offsets_of_a_path_beside_an_image_are_checked_too(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(1), "path": "abcdefg"}, {"bytes": png(2), "path": "hijklmn"}]
    path = write(tmp_path / "a.arrow", pa.table({"image": pa.array(rows, kind)}))
    content, offsets = path.read_bytes(), struct.pack("<3i", 0, 7, 14)
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, struct.pack("<3i", 0, -7, 14)))
    assert "cannot read this file" in refusal(path)


@pytest.mark.parametrize("suffix", ["arrow", "feather"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_compressed_table_is_refused_before_it_is_unpacked(tmp_path, suffix, dictionary):
    column = pa.array([bytes(1 << 22)] * 16)
    column = column.dictionary_encode() if dictionary else column
    content = pa.table({"image": column, "label": [0] * 16})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path = write(tmp_path / f"a.{suffix}", content, options=options)
    assert path.stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"is compressed.*write it with compression=None"):
        source(path)._open(path, "a")
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_row_group_that_unpacks_to_far_more_is_a_bad_image(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_shard, "LARGEST_GROUP", 1 << 24)
    column = pa.array([bytes(1 << 18)] * 1000)
    path = write(tmp_path / "a.parquet", pa.table({"image": column}), rows=1000)
    assert path.stat().st_size < 1 << 20
    split = source(path, test_fraction=0).split("train")
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(BadImage, match=r"a row group of more than 0\.0 GB; write smaller"):
        split.read(0)
    assert pa.default_memory_pool().max_memory() - before < 1 << 27


def test_more_rows_than_bytes_are_no_images(tmp_path):
    content = pa.table({"image": pa.nulls(1_000_000, pa.binary())})
    path = write(tmp_path / "a.parquet", content, rows=1_000_000)
    assert "declares 1000000 rows in" in refusal(path)


class Boom:
    def __reduce__(self):
        return os.system, ("touch ran",)


@SUFFIXES
def test_a_type_that_is_a_pickle_is_not_unpickled(tmp_path, suffix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Boom()),
    }
    fields = [pa.field("image", pa.binary(), metadata=extension)]
    path = write(tmp_path / f"a.{suffix}", pa.table([[png(1)]], schema=pa.schema(fields)))
    assert levels(source(path).split("train")) == [1]
    assert not (tmp_path / "ran").exists()


def test_a_damaged_description_of_classes_says_nothing(tmp_path):
    for features in (
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"info": {"features": {"label": {"names": 1}}}}',
    ):
        content = table([1], label=[0]).replace_schema_metadata({b"huggingface": features})
        assert source(write(tmp_path / "a.arrow", content)).split("train").class_names is None


@SUFFIXES
def test_a_missing_library_is_named(tmp_path, suffix, monkeypatch):
    path = write(tmp_path / f"a.{suffix}", table([1]))
    module = "pyarrow.parquet" if suffix == "parquet" else "pyarrow.ipc"
    monkeypatch.setitem(__import__("sys").modules, module, None)
    assert "requires pyarrow: pip install 'ssdistill[arrow]'" in refusal(path)
