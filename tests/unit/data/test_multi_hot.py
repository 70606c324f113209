"""Several labels per image, from every kind of source that has them."""

import io
import json

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from tar_files import tar_bytes

from ssdistill.data import several_labels
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.packing.writer import Packing, pack
from ssdistill.data.several_labels import joined, multi_hot, parts_of
from ssdistill.data.table_columns import label_column
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

NAMES = ("cat", "dog", "emu")
SEVERAL = [["dog", "cat"], ["cat"], [], ["emu"], ["dog", "emu"], ["cat", "dog", "emu"]]
BITS = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (level, 9, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    return tmp_path


def source(kind, **settings):
    return SOURCES.build(SOURCES.schema(kind)(**{"test_fraction": 0.4, **settings}))


def csv(folder, cells, header="path,label"):
    lines = [header, *(f"{k}.png,{cell}" for k, cell in enumerate(cells))]
    (folder / "l.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "l.csv")


def parquet(folder, **columns):
    table = pyarrow.table({"image": [png(k) for k in range(6)], **columns})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return str(folder / "t.parquet")


def by_image(found):
    """Labels by the first value of the image, which is its number; and the names."""
    rows = {}
    for name in ("train", "test"):
        split = found.split(name)
        assert split.labels().dtype == bool and len(split)
        for i, row in enumerate(split.labels().astype(int).tolist()):
            rows[int(split.image(i)[0, 0, 0])] = row
    return [rows[k] for k in range(6)], found.split("train").class_names


def test_names_between_separators(folder):
    cells = ["|".join(labels) for labels in SEVERAL]
    cells[0], cells[3] = "dog | cat|", "|emu"
    found = source("list", path=csv(folder, cells), label_separator="|")
    assert by_image(found) == (BITS, NAMES)


def test_numbers_between_separators_are_classes_from_zero(folder):
    cells = [";".join(str(NAMES.index(label)) for label in labels) for labels in SEVERAL]
    found = source("list", path=csv(folder, cells), label_separator=";")
    assert by_image(found) == (BITS, None)


@pytest.mark.parametrize(
    "words", [("0", "1"), ("False", "True"), ("0.0", "1.0"), ("FALSE", "TRUE"), ("false", "true")]
)
@pytest.mark.parametrize(
    "columns", ["is_*", ("is_cat", "is_dog", "is_emu"), ("is_cat", "is_[de]*")]
)
def test_a_column_for_each_class(folder, columns, words):
    cells = [",".join(words[bit] for bit in row) for row in BITS]
    path = csv(folder, cells, "path,is_cat,is_dog,is_emu")
    found = source("list", path=path, label_columns=columns)
    assert found.has_labels
    assert by_image(found) == (BITS, ("is_cat", "is_dog", "is_emu"))
    order = source("list", path=path, label_columns=("is_emu", "is_cat"))
    assert by_image(order)[0] == [[row[2], row[0]] for row in BITS]


def test_columns_of_which_each_image_has_one_are_classes(folder):
    path = csv(folder, ["0,1", "1,0"] * 3, "path,a,b")
    split = source("list", path=path, label_columns=["a", "b"]).split("train")
    assert split.labels().dtype == np.int64 and split.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "cell", "words"),
    [
        ({"label_columns": "is_x"}, "0", "label_columns=is_x: .* no such column .*has is_a, is_b"),
        ({"label_columns": "is_*"}, "", "column 'is_b' has '' for 1.png, which is neither 0 nor 1"),
        ({"label_columns": "is_*"}, "-1", "column 'is_b' has '-1' for 1.png"),
        ({"label_columns": "is_*"}, "nan", "column 'is_b' has 'nan' for 1.png"),
        (
            {"label_columns": "is_*", "label_column": "is_a"},
            "0",
            "label_column=is_a and data.label_columns=is_. are both set",
        ),
    ],
)
def test_columns_that_are_no_truth_values_are_refused(folder, settings, cell, words):
    path = csv(folder, ["1,1", f"0,{cell}", "0,0", "1,1", "1,1", "0,1"], "path,is_a,is_b")
    with pytest.raises(UserError, match=words) as caught:
        source("list", path=path, **settings).split("train").labels()
    assert "\n" not in str(caught.value)


def test_columns_and_lists_in_tables(folder):
    assert by_image(source("parquet", path=parquet(folder, label=SEVERAL))) == (BITS, NAMES)
    assert by_image(source("parquet", path=parquet(folder, label=BITS))) == (BITS, None)
    truths = [[bool(bit) for bit in row] for row in BITS]
    assert by_image(source("parquet", path=parquet(folder, label=truths))) == (BITS, None)
    each = dict(zip(NAMES, np.array(BITS).T.tolist(), strict=True))
    path = parquet(folder, **each, weight=[1.5] * 6)
    assert by_image(source("parquet", path=path, label_columns=NAMES)) == (BITS, NAMES)
    with pytest.raises(UserError, match="no such column"):
        source("parquet", path=path, label_columns="is_*").split("train")


def test_lists_of_one_are_one_label(folder):
    split = source("parquet", path=parquet(folder, label=[[k % 2] for k in range(6)])).split(
        "train"
    )
    assert split.labels().dtype == np.int64


@pytest.mark.parametrize("written", ["Sequence", "List", "older"])
def test_names_of_hugging_faces_lists(folder, written):
    item = {"names": [*NAMES, "fox"], "_type": "ClassLabel"}
    feature = [item] if written == "older" else {"feature": item, "_type": written}
    about = json.dumps({"info": {"features": {"label": feature}}})
    table = pyarrow.table(
        {
            "image": [png(k) for k in range(6)],
            "label": [[NAMES.index(label) for label in labels] for labels in SEVERAL],
        }
    ).replace_schema_metadata({"huggingface": about})
    assert label_column(table.schema, None, "t").names == (*NAMES, "fox")
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    found = source("parquet", path=str(folder / "t.parquet"))
    assert by_image(found) == ([[*row, 0] for row in BITS], (*NAMES, "fox"))
    item["names"] = ["cat", "dog"]
    about = json.dumps({"info": {"features": {"label": feature}}})
    table = table.replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    with pytest.raises(UserError, match="labels go up to 2, but there are 2 classes"):
        source("parquet", path=str(folder / "t.parquet")).split("train").labels()


def test_hugging_face_data_sets(folder):
    datasets = pytest.importorskip("datasets")
    label = datasets.Sequence(datasets.ClassLabel(names=list(NAMES)))
    features = datasets.Features({"image": datasets.Value("binary"), "label": label})
    rows = {
        "image": [png(k) for k in range(6)],
        "label": [[NAMES.index(label) for label in labels] for labels in SEVERAL],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "hf"))
    assert by_image(source("hf", path=str(folder / "hf"))) == (BITS, NAMES)


def shards(folder, texts, suffix, name="a.tar"):
    members = []
    for k, text in enumerate(texts):
        members += [(f"{k}.png", png(k)), (f"{k}.{suffix}", text.encode())]
    (folder / name).write_bytes(tar_bytes(members))
    return str(folder / name)


@pytest.mark.parametrize(
    ("texts", "settings", "names"),
    [
        ([" ".join(str(NAMES.index(x)) for x in row) for row in SEVERAL], {}, None),
        ([",\n".join(str(NAMES.index(x)) for x in row) for row in SEVERAL], {}, None),
        ([" ".join(map(str, row)) for row in BITS], {}, None),
        ([json.dumps({"label": row}) for row in SEVERAL], {"label": "json"}, NAMES),
        ([json.dumps({"a": {"b": row}}) for row in SEVERAL], {"label": "json.a.b"}, NAMES),
        ([json.dumps([NAMES.index(x) for x in row]) for row in SEVERAL], {"label": "json"}, None),
        ([json.dumps([bool(x) for x in row]) for row in BITS], {"label": "json"}, None),
    ],
)
def test_members_of_tar(folder, texts, settings, names):
    suffix = settings.get("label", "cls").split(".")[0]
    assert by_image(source("tar", path=shards(folder, texts, suffix), **settings)) == (BITS, names)


def test_both_splits_of_tar_have_the_classes_of_either(folder):
    train = shards(folder, ["0", "1", "0"], "cls", "train.tar")
    test = shards(folder, ["2", "0 3", "1"], "cls", "test.tar")
    found = source("tar", path=train, test=test)
    assert found.split("train").labels().astype(int).tolist() == np.eye(4)[[0, 1, 0]].tolist()
    assert found.split("test").labels().shape == (3, 4)


def test_a_name_of_two_words_in_a_cls_is_one(folder):
    path = shards(folder, ["great tit", "7 up"] * 3, "cls")
    assert source("tar", path=path).split("train").labels().dtype == np.int64


def test_packed_labels_come_back(folder):
    cells = ["|".join(labels) for labels in SEVERAL]
    before = source("list", path=csv(folder, cells), label_separator="|")
    pack(before, folder / "out", Packing(labels=True))
    assert by_image(source("tar", path=str(folder / "out"), test_fraction=None))[0] == BITS
    assert (folder / "out" / "classes.txt").read_text().split() == list(NAMES)


@pytest.mark.parametrize("kind", ["npz", "npy", "hdf5"])
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_arrays_of_zeros_and_ones(folder, kind, dtype):
    images = np.array([np.full((5, 6, 3), k) for k in range(6)], np.uint8)
    labels, path = np.array(BITS).astype(dtype), str(folder / f"a.{kind}")
    settings = {}
    if kind == "npz":
        np.savez(path, images=images, labels=labels, class_names=NAMES)
    elif kind == "npy":
        np.save(path, images)
        np.save(folder / "y.npy", labels)
        settings = {"label_path": str(folder / "y.npy")}
    else:
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = images, labels.astype(np.uint8)
    names = NAMES if kind == "npz" else None
    assert by_image(source(kind, path=path, **settings)) == (BITS, names)


def test_labels_of_images_that_are_left_out_are_left_out(folder):
    (folder / "1.png").write_bytes(b"no image")
    path = csv(folder, ["|".join(labels) for labels in SEVERAL])
    settings = SOURCES.schema("list")(
        path=path, label_separator="|", test_fraction=0.4, max_bad=0.5, image_size=4
    )
    stores = open_stores(SOURCES.build(settings), settings, 4, folder / "stores")
    assert sum(len(store.bad) for store in stores.values()) == 1
    for store in stores.values():
        for image, row in zip(store.images, store.labels.astype(int).tolist(), strict=True):
            assert row == BITS[int(image[0, 0, 0])]


def test_labels_are_not_read_before_they_are_asked_for(folder):
    path = csv(folder, ["a||b"] * 6)
    found = source("list", path=path, label_separator="|")
    assert (
        found.has_labels and len(found.split("train")) and found.split("train").class_names is None
    )
    with pytest.raises(UserError, match="an empty label between others"):
        found.split("train").labels()


def test_more_than_memory_holds_is_refused(folder, monkeypatch):
    monkeypatch.setattr(several_labels, "memory_bytes", lambda: 60)
    path = csv(folder, ["|".join(labels) for labels in SEVERAL])
    with pytest.raises(UserError, match="labels of 6 images and 3 classes take"):
        source("list", path=path, label_separator="|").split("train").labels()


def test_texts_are_taken_apart():
    assert parts_of("a|b", None) == ("a|b",)
    assert parts_of(" a | b |", "|") == ("a", "b")
    assert parts_of("", "|") == parts_of(joined([]), "|") == ()
    assert parts_of(joined(["a|b", "c"]), "|") == ("a", "b", "c")
    assert parts_of(joined([1, True])) == ("1", "True")
    for wrong in ("a||b", joined(["a", None]), joined([None, "a"])):
        with pytest.raises(ValueError, match="an empty label between others"):
            parts_of(wrong, "|")


def test_a_class_that_is_named_twice_counts_once():
    value_UK, names = multi_hot([("b", "a", "b"), ("b",)], "t")
    assert value_UK.astype(int).tolist() == [[1, 1], [0, 1]] and names == ("a", "b")


@pytest.mark.parametrize("separator", [None, "|"])
def test_one_hot_pairs_are_not_two_classes_each(separator):
    texts = ["0|1", "1|0"] if separator else [joined([0, 1]), joined([True, False])]
    value_UK, _ = multi_hot([parts_of(text, separator) for text in texts], "t")
    assert value_UK.astype(int).tolist() == [[0, 1], [1, 0]]
    # Classes in any order, where not all images have both.
    value_UK, _ = multi_hot([("0", "1"), ("1", "0"), ("0",)], "t")
    assert value_UK.astype(int).tolist() == [[1, 1], [1, 1], [1, 0]]


def test_names_with_underscores_are_not_numbers(folder):
    split = source("list", path=csv(folder, ["1_0", "10"] * 3)).split("train")
    split.labels()
    assert split.class_names == ("10", "1_0")


def test_all_frames_of_a_file_have_its_labels(folder):
    frames = [Image.new("RGB", (6, 5), (k, 9, 9)) for k in (1, 90)]
    frames[0].save(folder / "0.png", "PNG", save_all=True, append_images=frames[1:])
    path = csv(folder, ["|".join(labels) for labels in SEVERAL])
    settings = SOURCES.schema("list")(path=path, label_separator="|", frames="all", image_size=4)
    stores = open_stores(open_source(settings), settings, 4, folder / "stores")
    rows = [row for name in ("train", "test") for row in stores[name].labels.astype(int).tolist()]
    assert sorted(rows) == sorted([BITS[0], *BITS])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["0 -1", "1"], "negative"),
        (["0 1.5", "1"], "fractions"),
        ([b"\xff\xfe", "1"], r"the .cls of \d.png is not UTF-8 text"),
    ],
)
def test_wrong_numbers_in_tar_are_no_names(folder, texts, words):
    members = []
    for k, text in enumerate(texts * 3):
        content = text if isinstance(text, bytes) else text.encode()
        members += [(f"{k}.png", png(k)), (f"{k}.cls", content)]
    (folder / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(UserError, match=words):
        source("tar", path=str(folder / "a.tar")).split("train").labels()


def test_separators_after_numbers_and_whole_floats_in_tar(folder):
    path = shards(folder, ["0,1,", "1,", "0 ; 1\n", "1\n", "0,", "0"], "cls")
    expected = [[1, 1], [0, 1], [1, 1], [0, 1], [1, 0], [1, 0]]
    assert by_image(source("tar", path=path)) == (expected, None)
    path = shards(folder, ['{"label": [0.0, 1.0]}', '{"label": 1.0}'] * 3, "json", "b.tar")
    assert by_image(source("tar", path=path, label="json")) == ([[1, 1], [0, 1]] * 3, None)


def test_columns_of_one_name_are_refused(folder):
    path = csv(folder, ["1,0"] * 6, "path,is_a,is_a")
    with pytest.raises(UserError, match="several columns named is_a; rename them"):
        source("list", path=path, label_columns="is_*").split("train")


def test_patterns_do_not_match_the_images_of_a_table(folder):
    path = parquet(folder, is_a=[0, 1] * 3, is_b=[1, 1] * 3)
    found = source("parquet", path=path, label_columns="i*")
    assert found.split("train").labels().shape[1] == 2
    assert found.split("train").class_names == ("is_a", "is_b")
    pairs = pyarrow.array([[("a", 1)]] * 6, pyarrow.map_(pyarrow.string(), pyarrow.int8()))
    with pytest.raises(UserError, match=r"'label' is map<string, int8.*, not text or numbers"):
        source("parquet", path=parquet(folder, label=pairs)).split("train").labels()


def test_labels_of_different_length_in_hdf5_are_refused(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["images"] = np.zeros((6, 5, 6, 3), np.uint8)
        labels = file.create_dataset("labels", 6, h5py.vlen_dtype(np.int64))
        labels[0] = [0, 1]
    with pytest.raises(UserError, match=r"'labels' .* store labels as numbers, \(N,\) or \(N, K\)"):
        source("hdf5", path=str(folder / "a.h5")).split("train").labels()
