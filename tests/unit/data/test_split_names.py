"""Which folders are splits, which are classes, and which files are images."""

import os

import pytest
from PIL import Image

from ssdistill.data.listing import EXTENSIONS, list_images
from ssdistill.data.opening import open_source
from ssdistill.data.sources.folder import Folder
from ssdistill.data.split_names import split_of
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, format="PNG")


def names_of(split):
    return [split.name(i) for i in range(len(split))]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((n, "train") for n in ("train", "Train", "TRAINING", "trn", "train_set", "Train-Images")),
        *((n, "train") for n in ("train2017", "01_train", "train_dataset")),
        *((n, "test") for n in ("test", "Test", "TESTING", "tst", "testset", "test_data")),
        *((n, "val") for n in ("val", "valid", "VALIDATION", "Dev", "eval", "val_split")),
        *(
            (n, None)
            for n in ("cat", "trainer", "contest", "testify", "value", "data", "images", "1")
        ),
    ],
)
def test_words_for_splits_are_known_in_any_case(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("Training", "Testing"),
        ("train", "valid"),
        ("TRAIN", "VALIDATION"),
        ("trn", "tst"),
        ("training_set", "test_set"),
        ("train", "dev"),
        ("Train", "eval"),
        ("train2017", "val2017"),
        ("seg_train", "seg_test"),
        ("Training-Birds", "birds test set"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/images", "valid/images"),
        ("train/Train", "test"),
        ("data/train", "data/test"),
        ("data/images/train", "data/images/val/val"),
    ],
)
def test_folders_called_like_splits_are_splits(tmp_path, train, test):
    put(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png")
    source = Folder(path=str(tmp_path))
    assert names_of(source.split("train")) == [f"{train}/cat/1.png", f"{train}/dog/2.png"]
    assert names_of(source.split("test")) == [f"{test}/cat/3.png"]
    assert source.split("train").class_names == ("cat", "dog")
    assert source.warnings(True) == ()


@pytest.mark.parametrize("extra", ["extra/4.png", "train.bak/4.png", "5.png"])
def test_what_lies_beside_the_splits_is_left_out(tmp_path, extra):
    put(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", extra)
    layout = Folder(path=str(tmp_path))._layout
    assert (len(layout.train), len(layout.test), layout.skipped) == (2, 1, 1)
    assert layout.split_warnings == layout.class_warnings == ()


def test_folders_called_like_splits_of_several_things_are_classes_with_a_warning(tmp_path):
    names = [f"{thing}_{split}" for thing in ("cat", "dog") for split in ("train", "test")]
    put(tmp_path, *(f"{name}/{i}.png" for name in names for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert source.split("train").class_names == tuple(sorted(names))
    (warning,) = source.warnings(True)
    assert "look like splits" in warning


def test_a_compound_beside_other_folders_is_a_class(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in ("toy_train", "car", "crash_test") for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert source.split("train").class_names == ("car", "crash_test", "toy_train")
    assert source.warnings(True) == ()


@pytest.mark.parametrize("top", ["images", "data/imgs", "train/images", "train/train"])
def test_folders_that_hold_everything_and_say_nothing_are_no_class(tmp_path, top):
    put(tmp_path, *(f"{top}/{c}/{i}.png" for c in ("cat", "dog") for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert source.split("train").class_names == source.split("test").class_names == ("cat", "dog")
    assert source.warnings(True) == ()


def test_pictures_in_such_a_folder_are_unlabeled(tmp_path):
    put(tmp_path, *(f"{s}/images/{i}.png" for s in ("train", "valid") for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert not source.has_labels and source.split("train").class_names is None
    assert source.warnings(True) == ()


@pytest.mark.parametrize(
    ("stray", "first"),
    [
        (["cover.png"], "1 of 11 images are outside class folders (first: cover.png)"),
        (["test/1.png", "test/2.png"], "2 of 12 images are outside class folders (first: test/1"),
        (["test/a/1.png", "train/0.png"], "1 of 12 images are outside class folders (first: train"),
    ],
)
def test_a_few_pictures_outside_the_classes_that_unlabel_all_are_warned_of(tmp_path, stray, first):
    top = "" if stray == ["cover.png"] else "train/"
    put(tmp_path, *(f"{top}{c}/{i}.png" for c in "ab" for i in range(5)), *stray)
    source = Folder(path=str(tmp_path))
    assert not source.has_labels
    (warning,) = source.warnings(True)
    assert warning.startswith(first) and "evaluation is skipped" in warning
    assert source.warnings(False) == ()


def test_a_stray_test_image_is_warned_of_where_only_the_training_ones_lie_a_folder_deeper(tmp_path):
    train = [f"train/images/{c}/{i}.png" for c in "ab" for i in range(5)]
    put(tmp_path, *train, "test/a/1.png", "test/b/1.png", "test/0.png")
    (warning,) = Folder(path=str(tmp_path)).warnings(True)
    assert warning.startswith("1 of 13 images are outside class folders (first: test/0.png)")


def test_the_plain_words_win_over_others(tmp_path):
    put(tmp_path, *(f"{s}/{c}/1.png" for s in ("train", "Training", "test", "Tst") for c in "ab"))
    source = Folder(path=str(tmp_path))
    assert {n.split("/")[0] for n in names_of(source.split("train"))} == {"train"}
    assert {n.split("/")[0] for n in names_of(source.split("test"))} == {"test"}


def test_two_folders_that_could_be_the_training_pictures_are_refused(tmp_path):
    put(tmp_path, "Train/a/1.png", "Training/a/1.png", "test/a/1.png")
    with pytest.raises(
        UserError, match=r"any of the folders Train, Training could hold the training"
    ):
        Folder(path=str(tmp_path)).split("train")


def test_a_train_among_vehicles_is_a_class(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in ("bus", "car", "plane", "train") for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert source.split("train").class_names == ("bus", "car", "plane", "train")
    assert source.warnings(True) == ()


@pytest.mark.parametrize("classes", [("dev", "test"), ("Train", "unlabeled"), ("val",)])
def test_classes_that_look_like_splits_are_warned_of_with_or_without_labels(tmp_path, classes):
    put(tmp_path, *(f"{c}/{i}.png" for c in classes for i in range(5)))
    for labels in ("auto", "none"):
        source = open_source(SOURCES.schema("folder")(path=str(tmp_path), labels=labels))
        (warning,) = source.warnings(True)
        assert "look like splits" in warning and "rename the splits to train and test" in warning


def test_one_class_is_warned_of_with_the_folder_that_may_be_meant(tmp_path):
    put(tmp_path, *(f"only/{c}/{i}.png" for c in "ab" for i in range(5)))
    source = Folder(path=str(tmp_path))
    (warning,) = source.warnings(True)
    assert warning.startswith("one class only (only)") and f"data.path={tmp_path}/only" in warning
    assert source.warnings(False) == ()


@pytest.mark.parametrize(
    ("wrapping", "inner", "inside"),
    [
        ("only", "only", ", in its folders a, b, so"),
        ("flowers/set1/v2", "flowers/set1/v2", ", in its folders a, b, so"),
        ("train/flowers/set1", "train/flowers/set1", ", in its folders a, b, so"),
    ],
)
def test_what_a_wrapping_folder_holds_is_said_and_what_to_set(tmp_path, wrapping, inner, inside):
    put(tmp_path, *(f"{wrapping}/{c}/{i}.png" for c in "ab" for i in range(5)))
    (warning,) = Folder(path=str(tmp_path)).warnings(True)
    assert inside in warning and f"set data.path={tmp_path}/{inner} if these are" in warning
    assert Folder(path=f"{tmp_path}/{inner}").split("train").class_names == ("a", "b")


@pytest.mark.parametrize("more", [(), ("only/loose.png", "only/a/1.png")])
def test_a_single_folder_of_pictures_has_nothing_to_point_at(tmp_path, more):
    put(tmp_path, *(f"only/{i}.png" for i in range(5)), *more)
    (warning,) = Folder(path=str(tmp_path)).warnings(True)
    assert "data.path=" not in warning and warning.endswith("put each class into a separate folder")


def test_the_folder_that_may_be_meant_exists(tmp_path):
    put(tmp_path, *(f"Train/images/only/{c}/{i}.png" for c in "ab" for i in range(5)))
    (warning,) = Folder(path=str(tmp_path)).warnings(True)
    assert f"data.path={tmp_path}/Train/images/only " in warning


def test_splits_inside_the_classes_are_warned_of(tmp_path):
    put(tmp_path, *(f"{c}/{s}/{i}.png" for c in "ab" for s in ("train", "test") for i in range(4)))
    (warning,) = Folder(path=str(tmp_path)).warnings(False)
    assert "folders test, train inside class folders" in warning


def test_a_folder_for_each_picture_makes_no_classes(tmp_path):
    put(tmp_path, *(f"case{i}/scan.png" for i in range(20)))
    source = Folder(path=str(tmp_path))
    assert not source.has_labels and source.split("train").class_names is None
    assert (len(source.split("train")), len(source.split("test"))) == (18, 2)
    assert "each of the 20 images is in a separate folder" in source.warnings(True)[0]


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0)), (2, (2, 0)), (3, (2, 1)), (24, (22, 2))])
def test_a_few_pictures_are_first_of_all_trained_on(tmp_path, count, sizes):
    put(tmp_path, *(f"{i}.png" for i in range(count)))
    source = Folder(path=str(tmp_path))
    assert source.has_test == (sizes[1] > 0)
    assert (len(source._layout.train), len(source._layout.test)) == sizes


def test_without_test_pictures_there_are_no_labels_to_probe(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    source = Folder(path=str(tmp_path), test_fraction=0.0)
    assert not source.has_test and not source.has_labels


def test_labels_none_leaves_pictures_splits_and_stores_as_they_are(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    plain, blind = (
        open_source(SOURCES.schema("folder")(path=str(tmp_path), labels=labels))
        for labels in ("auto", "none")
    )
    assert plain.has_labels and not blind.has_labels
    assert (blind.kind, blind.settings) == (plain.kind, plain.settings)
    split = blind.split("train")
    assert split.identity() == plain.split("train").identity()
    assert split.class_names is None
    with pytest.raises(UserError, match=r"data\.labels=none"):
        split.labels()


# which files are images


def test_every_name_of_a_jpeg_is_known(tmp_path):
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.jpe", "e.jfif", "f.JFIF", "g.jif", "h.Jpeg"]
    put(tmp_path, *names)
    assert list_images(tmp_path).names == names
    assert {".jpg", ".jfif", ".jpe"} <= EXTENSIONS


def test_a_file_without_a_suffix_is_a_picture_if_it_begins_like_one(tmp_path):
    put(tmp_path, "scan", "a/0001")
    (tmp_path / "README").write_text("BMW, P5 and GIF images")
    (tmp_path / "empty").touch()
    (tmp_path / "broken").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    listing = list_images(tmp_path)
    assert listing.names == ["a/0001", "scan"]
    assert listing.others["without a suffix"] == 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_each_format_is_known_by_its_beginning(tmp_path, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / "scan", format=kind)
    assert list_images(tmp_path).names == ["scan"]


def test_what_programs_leave_behind_is_passed_over(tmp_path):
    put(tmp_path, "a.png", "__MACOSX/b.png", "._x.png", ".cache/c.png", "d/._y.png")
    (tmp_path / "Thumbs.db").write_text("x")
    (tmp_path / "d" / ".DS_Store").write_text("x")
    listing = list_images(tmp_path)
    assert listing.names == ["a.png"]
    assert listing.others == {"hidden": 3, ".db": 1}


def test_links_in_a_circle_are_bad_pictures_and_not_the_end(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "c").symlink_to("c")
    assert list_images(tmp_path).names == ["a.png", "b.png"]


def test_known_suffixes_are_said_where_there_is_no_picture(tmp_path):
    for name in ("a.dcm", "b.dcm", "c.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError) as caught:
        Folder(path=str(tmp_path)).split("train")
    message = str(caught.value)
    assert "(3 other files: 2 .dcm, 1 .txt)" in message
    assert ".jfif" in message and ".tif" in message and "\n" not in message


def test_names_that_cannot_be_printed_stay_in_one_line(tmp_path):
    folder = tmp_path / "a\nb"
    put(folder, *(f"{i}.png" for i in range(9)), "ü.png")
    (folder / "x\ny.png").write_bytes(b"")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    from ssdistill.data.store import open_store

    source = Folder(path=str(folder), test_fraction=0.0)
    assert "\n" not in source.description
    with pytest.raises(UserError) as caught:
        open_store(source, "train", 4, tmp_path / "stores")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    store = open_store(source, "train", 4, tmp_path / "stores", max_bad=0.5)
    assert len(store) == 10 and len(store.bad) == 2
