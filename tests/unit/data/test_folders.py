import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from ssdistill.data import file_split
from ssdistill.data.patterns import matcher
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


def put(folder, *names, color=(10, 20, 30)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), color).save(folder / name)


def names_of(split):
    return [split.name(i) for i in range(len(split))]


def below(folder, split):
    return sorted(name.removeprefix(f"{folder}/") for name in names_of(split))


# Several folders


def test_several_folders_are_one_set_whose_classes_have_names(tmp_path):
    put(tmp_path / "one", *(f"{c}/{k}.png" for c in ("cat", "dog") for k in range(5)))
    put(tmp_path / "two", *(f"{c}/{k}.png" for c in ("dog", "emu") for k in range(5)))
    source = Folder(path=[str(tmp_path / "one"), str(tmp_path / "two")])
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test)) == (16, 4)
    assert train.class_names == test.class_names == ("cat", "dog", "emu")
    for split in (train, test):
        classes = [split.class_names[k] for k in split.labels()]
        assert classes == [name.split("/")[-2] for name in names_of(split)]
        assert all(os.path.exists(name) for name in names_of(split))
        assert [split.image(i).shape for i in range(len(split))] == [(4, 4, 3)] * len(split)
    assert len(set(train.stamps().tolist())) == 16
    assert source.description.startswith("folder one, two, labeled, 16 train and 4 test")


def test_each_of_several_folders_keeps_its_own_splits(tmp_path):
    put(tmp_path / "one", "train/a/1.png", "test/a/2.png")
    put(tmp_path / "two", *(f"a/{k}.png" for k in range(10)))
    both = Folder(path=[str(tmp_path / "one"), str(tmp_path / "two")])
    alone = [Folder(path=str(tmp_path / name)) for name in ("one", "two")]
    for name in ("train", "test"):
        parts = [f"{s.path}/{n}" for s in alone for n in names_of(s.split(name))]
        assert names_of(both.split(name)) == parts


def test_files_that_are_alike_in_several_folders_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        put(tmp_path / folder, "a/1.png")
        os.utime(tmp_path / folder / "a" / "1.png", ns=(1, 1))
    split = Folder(path=[str(tmp_path / "one"), str(tmp_path / "two")], test_fraction=0)
    assert len(set(split.split("train").stamps().tolist())) == 2


def test_a_folder_without_classes_makes_all_unlabeled(tmp_path):
    put(tmp_path / "one", *(f"{c}/{k}.png" for c in ("cat", "dog") for k in range(5)))
    put(tmp_path / "two", *(f"{k}.png" for k in range(10)))
    source = Folder(path=[str(tmp_path / "one"), str(tmp_path / "two")])
    assert not source.has_labels
    assert "1 of 2 folders in data.path have no class folders (first: " in source.warnings(True)[0]


@pytest.mark.parametrize("inner", ["one", "one/a", "link"])
def test_a_folder_inside_another_would_count_twice(tmp_path, inner):
    put(tmp_path / "one", "a/1.png", "b/2.png")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    with pytest.raises(UserError, match="would count twice; remove one of them"):
        Folder(path=[str(tmp_path / "one"), str(tmp_path / inner)]).split("train")
    put(tmp_path / "one-more", "a/1.png")
    Folder(path=[str(tmp_path / "one"), str(tmp_path / "one-more")]).split("train")


def test_a_missing_folder_among_several_is_named(tmp_path):
    put(tmp_path / "one", "a/1.png")
    with pytest.raises(UserError, match=r"data\.path=.*/gone: no such file or folder"):
        Folder(path=[str(tmp_path / "one"), str(tmp_path / "gone")]).split("train")


# Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.png", "a/b/c.png", True),
        ("*.png", "c.pngx", False),
        ("a/*.png", "a/c.png", True),
        ("a/*.png", "a/b/c.png", False),
        ("a/**/*.png", "a/c.png", True),
        ("a/**/*.png", "a/b/d/c.png", True),
        ("a/**", "a/b/c.png", True),
        ("a/**", "ab/c.png", False),
        ("**/x/*", "a/x/c.png", True),
        ("a", "b/a/c.png", True),
        ("a/", "a/c.png", True),
        ("./a/b", "a/b/c.png", True),
        ("a/b", "x/a/b/c.png", False),
        ("?.png", "a.png", True),
        ("?.png", "ab.png", False),
        ("[ab].png", "b.png", True),
        ("[!ab].png", "b.png", False),
        ("[a-c]x", "bx", True),
        ("a[.png", "a[.png", True),
        ("a+(b).png", "a+(b).png", True),
        ("A.png", "a.png", False),
        ("[]].png", "].png", True),
        ("a?b", "a/b", False),
        ("a[!x]b", "a/b", False),
    ],
)
def test_patterns_are_those_of_gitignore(pattern, path, matches):
    assert matcher([pattern], "data.include")(path) is matches


@pytest.mark.parametrize("pattern", ["", "/", "/a/*", "../x", "a/../b"])
def test_a_pattern_that_leads_out_is_refused(pattern):
    with pytest.raises(
        UserError, match=r"data\.exclude: '.*' is not a pattern below data\.path; write"
    ):
        matcher(["a", pattern], "data.exclude")


def test_images_are_included_and_excluded(tmp_path):
    put(
        tmp_path,
        "a/1.png",
        "a/2.jpg",
        "a/raw/3.png",
        "b/4.png",
        "b/raw/5.png",
        "c/6.png",
        "b/7.png",
    )
    source = Folder(
        path=str(tmp_path), include=("a/**", "b"), exclude=("raw", "*.jpg"), test_fraction=0
    )
    assert names_of(source.split("train")) == ["a/1.png", "b/4.png", "b/7.png"]
    assert source.split("train").class_names == ("a", "b")
    assert "2 other files skipped" in source.description  # and two excluded folders
    nothing = Folder(path=str(tmp_path), include=("z",))
    with pytest.raises(UserError, match=r"7 excluded by data\.include or data\.exclude"):
        nothing.split("train")


def test_an_excluded_folder_is_not_entered(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "b/2.png")
    entered, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(str(path)) or scandir(path))
    Folder(path=str(tmp_path), exclude=("b",)).split("train")
    assert entered == [f"{tmp_path}", f"{tmp_path}/a"]


# Hashes


def test_new_settings_at_their_defaults_are_no_part_of_a_digest(tmp_path):
    settings = SOURCES.schema("folder")(path="x")
    assert "include" not in settings.model_dump()
    assert "exclude" not in settings.model_dump()
    assert SOURCES.build(settings).settings == {"path": "x", "test_fraction": None}
    chosen = SOURCES.schema("folder")(path=["x", "y"], include=["a"])
    assert chosen.model_dump()["include"] == ("a",)
    assert SOURCES.build(chosen).settings == {
        "path": ["x", "y"], "test_fraction": None, "include": ("a",)
    }  # fmt: skip
    assert "pixels" not in StoreSettings().model_dump()


def test_the_identity_is_that_of_version_0_1(tmp_path):
    put(tmp_path, "a/1.png", "b/2.png")
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, ns=(7, 7))
    (tmp_path / "b" / "3.png").symlink_to("nowhere")
    split = Folder(path=str(tmp_path), test_fraction=0).split("train")
    text = b"a/1.png\x005\x007\nb/2.png\x005\x007\nb/3.png\0missing\n"
    assert split.identity() == hashlib.sha256(text).hexdigest()
    lines = text.splitlines(keepends=True)
    numbers = [hashlib.blake2b(line, digest_size=8).digest() for line in lines]
    assert split.stamps().tobytes() == b"".join(numbers)
    assert split.missing.tolist() == [2]


def test_every_files_status_is_read_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(file_split, "PIECE", 2)
    put(tmp_path, *(f"{k:02}.png" for k in range(15)))
    split = Folder(path=str(tmp_path), test_fraction=0).split("train")
    seen, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **k: seen.append(path) or stat(path, **k))
    first = split.stamps()
    split.identity()
    assert len(seen) == len(set(seen)) == 15
    monkeypatch.setattr(file_split, "PIECE", 100)
    again = Folder(path=str(tmp_path), test_fraction=0).split("train")
    assert np.array_equal(again.stamps(), first)
    assert again.identity() == split.identity()


def test_names_are_sorted_as_paths(tmp_path):
    names = ["a-b/1.png", "a/1.png", "a/b/2.png", "a/b.png", "a/b1.png", "a.png", "ab.png", "é.png"]
    put(tmp_path, *names)
    split = Folder(path=str(tmp_path), test_fraction=0).split("train")
    assert names_of(split) == sorted(names)


def test_files_that_require_channels_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 5), dtype="f4"))
    with pytest.raises(UserError, match=r"set data\.channels to read \.npy files, or add"):
        Folder(path=str(tmp_path)).split("train")
