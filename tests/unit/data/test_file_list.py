import codecs
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ssdistill.data.sources.file_list import FileList
from ssdistill.errors import UserError


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10, 20, 30)).save(folder / name)


def write(folder, text, name="list.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def names_of(split):
    return [split.name(i) for i in range(len(split))]


def both(source):
    return [names_of(source.split("train")), names_of(source.split("test"))]


@pytest.fixture
def images(tmp_path):
    put(tmp_path, *(f"i/{k}.png" for k in range(10)))
    return tmp_path


def source(path, **settings):
    return FileList(path=str(path), **settings)


def refusal(path, **settings):
    with pytest.raises(UserError) as caught:
        split = source(path, **settings).split("train")
        split.labels()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_are_found_by_their_usual_names_and_said(images):
    text = "Set,Image_Path,Class,extra\n" + "".join(
        f"{'val' if k > 7 else 'training'},i/{k}.png,{'dog' if k % 2 else 'cat'},x\n"
        for k in range(10)
    )
    found = source(write(images, text))
    assert both(found) == [[f"i/{k}.png" for k in range(8)], ["i/8.png", "i/9.png"]]
    assert "path in column 'Image_Path', label in column 'Class', split in column 'Set'" in (
        found.description
    )
    train = found.split("train")
    assert train.class_names is None  # before labels are read
    assert train.labels().tolist() == [0, 1] * 4
    assert train.class_names == found.split("test").class_names == ("cat", "dog")
    assert train.image(0)[0, 0].tolist() == [10, 20, 30]
    assert found.has_labels


def test_columns_are_named_by_keys_and_left_out_by_none(images):
    text = "a;b;split\n" + "".join(f"i/{k}.png;{k % 3};?\n" for k in range(10))
    path = write(images, text)
    found = source(path, path_column="a", label_column="b", split_column="none")
    assert sum(map(len, both(found))) == 10
    labels = found.split("train").labels()
    assert [int(name[2]) % 3 for name in names_of(found.split("train"))] == labels.tolist()
    assert found.split("train").class_names is None
    assert "unknown split '?' in column 'split', row 1; write train, test, val" in refusal(
        path, path_column="a"
    )
    assert "no column is named path, file or image; it has a, b, split" in refusal(path)
    message = refusal(path, path_column="a", label_column="bb")
    assert "data.label_column=bb: " in message
    assert "it has a, b, split" in message


@pytest.mark.parametrize(
    ("name", "line"),
    [("a.txt", "i/{0}.png"), ("a.lst", "./i/{0}.png"), ("a.csv", "i/{0}.png"), ("a.tsv", "{1}")],
)
def test_plain_lists_have_one_path_in_each_line(images, name, line):
    lines = [line.format(k, images / "i" / f"{k}.png") for k in range(10)]
    found = source(write(images, "# ten\r\n\r\n" + "\r\n".join(lines), name), test_fraction=0.0)
    assert len(found.split("train")) == 10
    assert not found.has_labels
    assert found.split("train").read(3) == (images / "i" / "3.png").read_bytes()
    with pytest.raises(UserError, match=r"\(train\) has no labels"):
        found.split("train").labels()
    with pytest.raises(UserError, match=r"has no test images; raise data\.test_fraction"):
        found.split("test")


@pytest.mark.parametrize("between", [" ", "\t", ", ", "  "])
def test_a_number_after_a_path_is_its_label(images, between):
    text = "\n".join(f"i/{k}.png{between}{k}" for k in range(10))
    found = source(write(images, text, "val.txt"))
    train = found.split("train")
    assert found.has_labels
    assert [int(name[2]) for name in names_of(train)] == train.labels().tolist()


def test_quotes_blanks_and_commas_in_paths_are_read(tmp_path):
    put(tmp_path, "a b,c.png", 'say "hi".png', "ä/ö 1.png")
    text = 'file, label\n"a b,c.png", x\n"say ""hi"".png",y\nä/ö 1.png,x\n'
    found = source(write(tmp_path, text), test_fraction=0)
    assert names_of(found.split("train")) == ["a b,c.png", 'say "hi".png', "ä/ö 1.png"]
    assert found.split("train").labels().tolist() == [0, 1, 0]
    plain = write(tmp_path, "ä/ö 1.png\na b,c.png\n", "l.txt")
    assert names_of(source(plain, test_fraction=0).split("train")) == ["ä/ö 1.png", "a b,c.png"]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
@pytest.mark.parametrize("name", ["l.csv", "l.txt"])
def test_a_mark_says_how_a_text_is_encoded(tmp_path, mark, encoding, name):
    put(tmp_path, "ä.png", "b.png")
    (tmp_path / name).write_bytes(mark + "ä.png\r\nb.png\r\n".encode(encoding))
    assert names_of(source(tmp_path / name, test_fraction=0).split("train")) == ["ä.png", "b.png"]


def test_another_encoding_is_set_or_suggested(tmp_path):
    put(tmp_path, "ä.png", "b.png")
    path = write(tmp_path, "path\nä.png\nb.png\n", encoding="cp1252")
    assert "1 of 2 files are missing" in (message := refusal(path))
    assert "the list is not UTF-8; set data.encoding, such as cp1252" in message
    assert len(source(path, encoding="cp1252", test_fraction=0).split("train")) == 2
    assert "is not encoded as utf-8" in refusal(path, encoding="utf-8")
    assert "data.encoding=utf-9: unknown encoding" in refusal(path, encoding="utf-9")


def test_names_that_are_no_utf8_are_found(tmp_path):
    put(tmp_path, "x.png")
    os.rename(os.fsencode(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/\xff.png")
    (tmp_path / "l.txt").write_bytes(b"\xff.png\n")
    split = source(tmp_path / "l.txt").split("train")
    assert split.image(0).shape == (4, 4, 3)


def test_missing_files_are_counted_and_named_or_skipped(images):
    text = "path\n" + "".join(f"i/{k}.png\n" for k in range(17))
    path = write(images, text)
    message = refusal(path)
    assert f"7 of 17 files are missing below {images}" in message
    assert "(first: i/10.png, i/11.png, i/12.png, i/13.png, i/14.png, …)" in message
    assert message.endswith("or correct the list, or set data.missing=skip")
    found = source(path, missing="skip")
    assert sorted(name for names in both(found) for name in names) == [
        f"i/{k}.png" for k in range(10)
    ]
    assert found.warnings(True)[0].endswith("…); skipping them")
    all_gone = write(images, "path\na.png\n")
    assert "1 of 1 files are missing" in refusal(all_gone, missing="skip")
    windows = write(images, "path\ni\\1.png\ni/2.png\n")
    assert refusal(windows).endswith("write the paths with / instead of \\")


def test_labels_of_skipped_files_are_those_of_their_rows(images):
    text = "path,label\ngone.png,9\n" + "".join(f"i/{k}.png,{k}\n" for k in range(10))
    train = source(write(images, text), missing="skip", test_fraction=0).split("train")
    assert train.labels().tolist() == list(range(10))


def test_what_is_skipped_needs_no_label(images):
    text = "path,label\ngone.png,\n" + "".join(f"i/{k}.png,{k}\n" for k in range(10))
    train = source(write(images, text), missing="skip", test_fraction=0).split("train")
    assert train.labels().tolist() == list(range(10))


def test_paths_start_from_root_and_may_lead_up(images):
    (images / "lists").mkdir()
    path = write(images / "lists", "../i/1.png\n../i/2.png\n", "l.txt")
    assert len(source(path).split("train")) == 2
    path = write(images / "lists", "1.png\n2.png\n", "l.txt")
    assert len(source(path, root=str(images / "i")).split("train")) == 2
    assert "data.root=" in refusal(path, root=str(images / "gone"))


def test_paths_that_are_there_twice_are_counted_and_on_one_side(images):
    text = "".join(f"i/{k % 10}.png\n" for k in range(20))
    found = source(write(images, text, "l.txt"), test_fraction=0.3)
    train, test = both(found)
    assert not set(train) & set(test)
    assert (len(train), len(test)) == (14, 6)
    assert "10 of 20 paths repeat earlier ones (first: i/0.png)" in found.warnings(False)[0]


def test_a_group_is_never_on_both_sides(tmp_path):
    put(tmp_path, *(f"{k:03}.png" for k in range(120)))
    text = "path,patient\n" + "".join(f"{k:03}.png,p{k % 12}\n" for k in range(120))
    found = source(write(tmp_path, text), test_fraction=0.25)
    sides = [{int(name[:3]) % 12 for name in names} for names in both(found)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3
    again = source(write(tmp_path, text.replace("p1\n", "p1\n")), test_fraction=0.25)
    assert both(again) == both(found)


def test_groups_and_images_in_both_splits_are_warned_of(images):
    text = "path,split,group\n" + "".join(
        f"i/{k}.png,{['train', 'test', 'val'][k % 3]},{k % 4}\n" for k in range(9)
    )
    first, second = source(write(images, text)).warnings(True)
    assert "ignoring 3 images of split val" in first
    assert "groups are in both train and test (first: i/0.png)" in second
    text = "path,split\ni/1.png,train\ni/1.png,test\ni/2.png,train\n"
    assert "1 images are in both" in source(write(images, text)).warnings(True)[1]


def test_held_out_images_do_not_depend_on_the_order_of_the_list(images):
    lines = [f"i/{k}.png\n" for k in range(10)]
    forth = both(source(write(images, "".join(lines), "a.txt"), test_fraction=0.3))
    back = both(source(write(images, "".join(lines[::-1]), "b.txt"), test_fraction=0.3))
    assert sorted(forth[1]) == sorted(back[1])
    assert len(forth[1]) == 3


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a||b", "a"], "the labels of i/0.png (a||b) have an empty label between others"),
        (["0|-1", "1"], "1 of 3 are negative"),
        (["0|nan", "1"], "1 of 3 are NaN"),
        (["0|70000", "1"], "go up to 70000, but at most 65536 are supported"),
        (["", "a"], "1 of 2 images have no label (first: i/0.png)"),
        (["0.5", "1"], "must be whole numbers, but 1 of 2 are fractions"),
        (["-1", "1"], "1 of 2 are negative"),
        (["nan", "1"], "1 of 2 are NaN"),
    ],
)
def test_labels_that_no_probe_can_use_are_refused_when_they_are_read(images, cells, message):
    text = "path,label\n" + "".join(f"i/{k}.png,{cell}\n" for k, cell in enumerate(cells))
    path = write(images, text)
    assert len(source(path, label_separator="|").split("train")) == 2
    found = refusal(path, label_separator="|")
    assert message in found
    assert "data.labels=none" in found


def test_one_label_beside_a_separator_is_one(images):
    text = "path,label\ni/0.png,a|\ni/1.png,|b\n"
    assert source(write(images, text), label_separator="|").split("train").labels().tolist() == [
        0,
        1,
    ]


def test_weights_are_read_and_checked(images):
    text = "path,weight\ni/0.png,1\ni/1.png,0.5\n"
    found = source(write(images, text))
    assert found.split("train").weights().tolist() == [1.0, 0.5]
    assert (
        "training draws images by the weights in column 'weight', with replacement"
        in found.warnings(False)[0]
    )
    for bad in ("-1", "x", "nan", "inf", ""):
        broken = source(write(images, text.replace("0.5", bad)))
        with pytest.raises(UserError, match=r"in row 2 must be a non-negative number"):
            broken.split("train").weights()
    assert source(write(images, "path\ni/0.png\n")).split("train").weights() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("# nothing\n", "the list is empty"),
        ("path,label\n", "has no images"),
        ("path,label\ni/1.png,0\ni/2.png\n", "entry 3 has only 1 of 2 columns (i/2.png)"),
        ("path,label\n,0\n", "row 1 has no path"),
        ("a,b,c\ni/1.png,2,3\n", "3 columns, but the first line is not a header (a, b, c)"),
        ("path,split\ni/1.png,test\n", "no image is in split train"),
        ('path\n"' + "x" * 200_000 + '"\n', "field larger than field limit"),
    ],
)
def test_a_list_that_says_too_little_is_refused_in_one_line(images, text, message):
    assert message in refusal(write(images, text))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "l.csv")
    assert "a named pipe, not a regular file" in refusal(tmp_path / "l.csv")
    said = refusal(tmp_path / "gone.txt")
    assert "gone.txt: no such file or folder; pass a readable list" in said
    (tmp_path / "l.txt").write_text("x" * (1 << 20) + "\n")
    assert "a line of more than" in refusal(tmp_path / "l.txt")


def test_names_with_nothing_a_system_takes_are_missing(tmp_path):
    put(tmp_path, "a.png")
    path = write(tmp_path, "a.png\nb\0c.png\n" + "d" * 5000 + ".png\n", "l.txt")
    assert "2 of 3 files are missing" in refusal(path)


def test_a_list_that_changes_before_labels_are_read_is_noticed(images):
    path = write(images, "path,label\ni/0.png,0\ni/1.png,1\n")
    train = source(path).split("train")
    len(train)
    path.write_text("path,label\ni/0.png,0\n")
    with pytest.raises(UserError, match="has changed since it was read; run the command again"):
        train.labels()


def test_parquet_lists_are_read(images):
    columns = {
        "file": [f"i/{k}.png" for k in range(10)],
        "label": [[k % 3] for k in range(10)],
        "split": ["train"] * 7 + ["test"] * 3,
        "weight": np.arange(10.0),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), images / "l.parquet", row_group_size=4)
    found = source(images / "l.parquet")
    assert both(found)[1] == ["i/7.png", "i/8.png", "i/9.png"]
    assert found.split("test").labels().tolist() == [1, 2, 0]
    assert found.split("test").weights().tolist() == [7, 8, 9]
    columns["label"] = [[1, 2], [], None, *[[k % 3] for k in range(7)]]
    pyarrow.parquet.write_table(pyarrow.table(columns), images / "l.parquet")
    several = source(images / "l.parquet").split("train").labels()
    assert several.dtype == bool and several[:4].astype(int).tolist() == [
        [0, 1, 1],
        [0, 0, 0],
        [0, 0, 0],
        [1, 0, 0],
    ]


def test_a_parquet_list_that_cannot_be_read_is_named(images):
    (images / "l.parquet").write_bytes(b"PAR1 this is none PAR1")
    assert "cannot read this Parquet file" in refusal(images / "l.parquet")
    table = pyarrow.table({"path": [b"\xff", b"b"], "x": [1, 2]})
    pyarrow.parquet.write_table(table, images / "l.parquet")
    assert "column 'path' is" in refusal(images / "l.parquet")


def test_a_long_text_repeated_a_million_times_takes_no_memory(images):
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(1 << 20, dtype=np.int32)), pyarrow.array(["x" * (1 << 20)])
    )
    pyarrow.parquet.write_table(pyarrow.table({"path": text}), images / "l.parquet")
    assert (images / "l.parquet").stat().st_size < 1 << 20
    assert "has a value of 1048576 characters, more than 65536" in refusal(images / "l.parquet")


def test_stamps_follow_a_files_time_and_its_path(images):
    path = write(images, "".join(f"i/{k}.png\n" for k in range(10)), "l.txt")
    before = source(path, test_fraction=0).split("train")
    os.utime(images / "i" / "3.png", ns=(1, 1))
    after = source(path, test_fraction=0).split("train")
    assert np.flatnonzero(before.stamps() != after.stamps()).tolist() == [3]
    assert before.identity() != after.identity()


def test_a_missing_library_is_named(images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (images / "l.parquet").write_bytes(b"")
    assert "requires pyarrow: pip install 'ssdistill[arrow]'" in refusal(images / "l.parquet")


def test_two_roles_of_one_column_are_refused(images):
    path = write(images, "path,label\n" + "".join(f"i/{k}.png,{k % 2}\n" for k in range(10)))
    assert "data.label_column=path" in (text := refusal(path, label_column="path"))
    assert "has the path in this column; set another, or data.path_column" in text
    # A usual name that is requested for another role is not an error.
    assert (
        source(path, weight_column="label", label_column="none").split("train").weights()
        is not None
    )
