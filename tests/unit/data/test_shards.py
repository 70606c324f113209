"""Images in shards: what is found, read and held out, and what goes wrong."""

import gzip
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tar_files import jpeg, npy, samples, tar_bytes, write_shards

from ssdistill.data.opening import open_originals, open_source, open_stores
from ssdistill.data.settings import StoreSettings
from ssdistill.data.shards import storage
from ssdistill.data.shards.index import ShardIndex
from ssdistill.data.shards.patterns import expand
from ssdistill.data.shards.scanning import RECORD
from ssdistill.data.shards.storage import Disk
from ssdistill.data.sources.tar import Tar
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


@pytest.fixture
def shards(tmp_path) -> Path:
    return write_shards(tmp_path / "in", {"train-00.tar": 12, "train-01.tar": 8, "val-00.tar": 6})


def names(split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


def one_shard(folder: Path, members, **settings) -> Tar:
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(members if isinstance(members, bytes) else tar_bytes(members))
    return Tar(path=str(folder / "a.tar"), **{"test_fraction": 0, **settings})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}-{x,}", ["2-x", "2-", "1-x", "1-", "0-x", "0-"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_stand_for_names(pattern, expected):
    assert expand(pattern) == expected


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{a", "{0..999}-{0..999}", "{a{b,c}}"])
def test_braces_that_stand_for_nothing_are_refused(pattern):
    with pytest.raises(UserError, match="braces"):
        expand(pattern)


def test_shards_are_split_by_their_names(shards):
    source = Tar(path=str(shards))
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test), source.has_labels) == (20, 6, True)
    assert names(test) == [f"{n:04d}.jpg" for n in range(20, 26)]
    assert train.labels().tolist() == [n % 3 for n in range(20)]
    assert test.labels().tolist() == [n % 3 for n in range(20, 26)]
    assert train.read(13) == jpeg(13)
    assert source.description == "3 tar archives, labeled, 20 train and 6 test images"
    assert source.warnings(labels=True) == ()


def test_names_say_which_shards_are_for_testing(shards):
    patterns = {"path": f"{shards}/train-{{00..01}}.tar", "test": f"{shards}/v*.tar"}
    named = Tar(**patterns)
    by_name = Tar(path=str(shards))
    for split in ("train", "test"):
        assert named.split(split).identity() == by_name.split(split).identity()
    with pytest.raises(UserError, match=r"is also in data\.path"):
        Tar(path=str(shards), test=f"{shards}/val-00.tar").split("test")
    listed = Tar(path=(f"{shards}/train-01.tar", f"{shards}/train-00.tar"), test_fraction=0)
    assert names(listed.split("train"))[0] == "0012.jpg"


def test_images_are_held_out_by_their_names_whatever_shard_they_are_in(tmp_path):
    two = Tar(path=str(write_shards(tmp_path / "two", {"a.tar": 25, "b.tar": 15})))
    one = Tar(path=str(write_shards(tmp_path / "one", {"c.tar": 40})))
    assert (len(two.split("train")), len(two.split("test"))) == (36, 4)
    for split in ("train", "test"):
        assert names(two.split(split)) == names(one.split(split))
        expected = [int(name[:4]) % 3 for name in names(one.split(split))]
        assert one.split(split).labels().tolist() == expected
    assert sorted(names(one.split("train")) + names(one.split("test"))) == [
        f"{n:04d}.jpg" for n in range(40)
    ]
    assert not Tar(path=str(tmp_path / "one"), test_fraction=0).has_test


def test_names_that_two_shards_have_are_told_apart(tmp_path):
    for shard in "ab":
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes(samples(0, 20)))
    source = Tar(path=str(tmp_path), test_fraction=0.25)
    held_out = names(source.split("test"))
    assert (len(held_out), len(set(held_out))) == (10, 10)
    assert {name[:2] for name in held_out} == {"a/", "b/"}
    # Not the same of each.
    assert len({name[2:] for name in held_out}) > 5


def test_only_a_shard_that_changed_is_read_again(shards):
    def index() -> ShardIndex:
        return Tar(path=f"{shards}/train-*.tar").split("train").index

    first = index()
    assert (first.num_read, first.records_N.dtype.itemsize, len(first)) == (2, 24, 20)
    assert isinstance(first.records_N.base, np.memmap)
    before = first.stamps()
    assert index().num_read == 0
    (shards / "train-01.tar").write_bytes(tar_bytes(samples(30, 9)))
    second = index()
    assert (second.num_read, len(second)) == (1, 21)
    after = second.stamps()
    assert np.array_equal(before[:12], after[:12])
    assert not set(before[12:]) & set(after[12:])
    assert len(set(after.tolist())) == 21


@pytest.mark.parametrize("file", ["records.npy", "shards.json"])
def test_a_damaged_index_is_made_anew(shards, file):
    Tar(path=str(shards)).split("train")
    for path in (shards / ".ssdistill").glob(f"*/{file}"):
        path.write_bytes(b"\x93NUMPY{")
    split = Tar(path=str(shards)).split("train")
    assert (split.index.num_read, len(split)) == (2, 20)


def test_an_index_of_something_else_does_no_harm(shards, tmp_path):
    split = Tar(path=f"{shards}/val-00.tar", test_fraction=0).split("train")
    (file,) = shards.glob(".ssdistill/*/records.npy")
    records = np.load(file)
    records["block"][0], records["size"][1] = 2**32 - 1, 2**32 - 1
    records["block"][2] += 1
    records["head"][3], records["label"][4], records["label"][5] = 2**32 - 1, -(2**31), 2**31 - 1
    np.save(file, records)
    source = Tar(path=f"{shards}/val-00.tar", test_fraction=0)
    assert source.split("train").index.num_read == 0
    originals = open_originals(source, "train", StoreSettings(max_bad=0.9), 8, tmp_path / "data")
    assert [reason for _, reason in originals.bad[:2]] == [
        "truncated at the end of val-00.tar; copy the shard again"
    ] * 2
    assert len(originals) == 3
    assert names(source.split("train"))[3] == "image at byte 8192 of val-00.tar"
    with pytest.raises(UserError, match="has moved since it was indexed"):
        source.split("train").labels()
    assert names(source.split("train"))[5] == names(split)[5]


def test_beside_read_only_shards_no_index_is_written(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SSDISTILL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert len(Tar(path=str(shards)).split("train")) == 20
    assert not (shards / ".ssdistill").exists()
    assert len(list((tmp_path / "state" / "shards").glob("*/records.npy"))) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSDISTILL_STATE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SSDISTILL_STATE to a writable one"):
        Tar(path=str(shards)).split("train")


def test_members_that_are_no_images_of_their_own_are_ignored(tmp_path):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("hard.jpg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/1.jpg"
    device = tarfile.TarInfo("null.jpg")
    device.type = tarfile.CHRTYPE
    image = jpeg(0)
    source = one_shard(tmp_path / "in", [
        ("/etc/1.jpg", image), ("../2.jpg", image), ("a/../../3.jpg", image), link, hard, device,
        ("a\\4.jpg", image), (".hidden.jpg", image), ("__MACOSX/5.jpg", image), ("x.pkl", b"."),
        ("./a/1.jpg", image), ("a/b..c.JPG", image), ("noted.txt", b"text"),
    ])  # fmt: skip
    split = source.split("train")
    assert names(split) == ["a/1.jpg", "a/b..c.JPG"]
    assert split.read(0) == image
    assert "ignoring 4 members whose names are absolute or contain '..'" in source.warnings(True)[0]


def test_a_shard_that_is_cut_off_is_named(tmp_path):
    content = tar_bytes({f"{n}.jpg": jpeg(n) for n in range(4)})
    end = content.rindex(b"\xff\xd8\xff") + 100
    source = one_shard(tmp_path / "in", content[:end])
    (warning,) = source.warnings(labels=False)
    assert "a.tar: truncated at byte" in warning
    assert "only the 4 images before it are read; copy the shard again" in warning
    store = open_originals(source, "train", StoreSettings(max_bad=0.5), 16, tmp_path / "data")
    assert (len(store), store.bad) == (
        3, [("3.jpg", "truncated at the end of a.tar; copy the shard again")]
    )  # fmt: skip
    assert not Tar(path=source.path, test_fraction=0).split("train").index.num_read
    assert Tar(path=source.path).warnings(labels=False) == (warning,)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gzip.compress(tar_bytes({"a.jpg": jpeg(0)})), "compressed with gzip.*gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd.*unzstd"),
        (b"", "no images in these shards .*truncated at byte 0"),
        (b"junk" * 300, "no images in these shards .*invalid header at byte 0"),
        (tar_bytes({"a.pkl": b".", "b.pkl": b"."}), "no images in these shards, only 2 .pkl"),
    ],
)
def test_what_holds_no_images_is_refused_in_one_line(tmp_path, content, why):
    with pytest.raises(UserError, match=why) as error:
        one_shard(tmp_path / "in", content).split("train")
    assert "\n" not in str(error.value)


def test_shards_that_are_not_there_are_named(shards, tmp_path):
    with pytest.raises(UserError, match=r"train-02.tar: no such file or folder"):
        Tar(path=f"{shards}/train-{{00..02}}.tar").split("train")
    with pytest.raises(UserError, match="no such file or folder; name shards"):
        Tar(path=f"{shards}/other-*.tar").split("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no shards \(.tar\) in it; name shards"):
        Tar(path=str(tmp_path / "empty")).split("train")
    with pytest.raises(UserError, match="a device, not a regular file"):
        Tar(path="/dev/null").split("train")


def test_a_shard_that_changes_while_it_is_open_is_not_read_as_before(shards):
    split = Tar(path=str(shards)).split("train")
    (shards / "train-00.tar").write_bytes(tar_bytes(samples(50, 30)))
    with pytest.raises(Exception, match=r"train-00.tar has changed; run the command again"):
        split.read(0)
    assert split.read(15) == jpeg(15)


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "HANDLES", 5)
    count = 14
    source = Tar(path=str(write_shards(tmp_path, {f"{n:02d}.tar": 2 for n in range(count)})),
                 test_fraction=0)  # fmt: skip
    split = source.split("train")
    for i in range(len(split)):
        assert split.read(i) == jpeg(i)
    assert len(split.index.storage._files) == 5
    with ThreadPoolExecutor(4) as pool:
        order = np.random.default_rng(0).permutation(len(split)).tolist() * 3
        assert list(pool.map(split.read, order)) == [jpeg(i) for i in order]
    assert (len(split.index.storage._files), split.index.storage._users.total()) == (5, 0)


def test_arrays_are_images_with_their_own_values(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    deep = rng.integers(0, 60000, (9, 7), dtype=np.uint16)
    source = one_shard(tmp_path / "in", {
        "0.npy": npy(color), "1.npy": npy(deep), "2.npy": npy(np.array([{}], dtype=object)),
        "3.npy": npy(color)[:-1], "4.jpg": jpeg(4),
    })  # fmt: skip
    split = source.split("train")
    assert np.array_equal(split.image(0), color)
    assert np.array_equal(split.image(1), deep)
    assert list(split.deep_rows()) == [1]
    settings = StoreSettings(max_bad=0.5)
    originals = open_originals(source, "train", settings, 8, tmp_path / "data")
    assert [name for name, _ in originals.bad] == ["2.npy", "3.npy"]
    assert originals.bad[0][1] == "an array of object; save real numbers"
    stored = open_stores(source, StoreSettings(max_bad=0.5, pixels="stored"), 8, tmp_path)["train"]
    assert np.array_equal(stored.images[:], originals.images[:])


def labeled(folder: Path, texts: list[str], suffix: str, **settings) -> Tar:
    members = {}
    for n, text in enumerate(texts):
        members |= {f"{n}.jpg": jpeg(n), f"{n}.{suffix}": text.encode()}
    return one_shard(folder, members, **settings)


@pytest.mark.parametrize(
    ("texts", "settings", "expected"),
    [
        (["2", " 0\n", "1"], {}, [2, 0, 1]),
        (["cat", "ant", "cat"], {}, [1, 0, 1]),
        (["7", '{"label": 3}', "0"], {"label": "json"}, [7, 3, 0]),
        (['{"a": {"b": "x"}}', '{"a": {"b": "y"}}'] * 2, {"label": "json.a.b"}, [0, 1, 0, 1]),
        (["dog", "cat", "dog"], {"label": "txt"}, [1, 0, 1]),
    ],
)
def test_labels_are_numbers_or_names(tmp_path, texts, settings, expected):
    suffix = settings.get("label", "cls").split(".")[0]
    split = labeled(tmp_path / "in", texts, suffix, **settings).split("train")
    assert split.labels().tolist() == expected


def test_names_of_classes_are_numbered_over_both_splits(tmp_path):
    for name, texts in (("train", ["b", "c"] * 3), ("test", ["a", "c"] * 3)):
        labeled(tmp_path / name, texts, "cls")
    source = Tar(path=str(tmp_path / "train" / "a.tar"), test=str(tmp_path / "test" / "a.tar"))
    assert source.split("train").labels().tolist() == [1, 2] * 3
    assert source.split("test").labels().tolist() == [0, 2] * 3


@pytest.mark.parametrize(
    ("texts", "settings", "why"),
    [
        (["1", "-1"], {}, "from 0"),
        (["1", ""], {}, "the .cls of 1.jpg is empty"),
        (["1", "x" * 300], {}, "the .cls of 1.jpg has 300 characters"),
        (["1", "{"], {"label": "json"}, "the .json of 1.jpg"),
        (["1", "[" * 100_000], {"label": "json"}, "the .json of 1.jpg"),
        (["1", "{}"], {"label": "json"}, "has no field 'label'; set data.label=json"),
        (["1", "true"], {"label": "json"}, "holds True instead of one number or name"),
        (["1", "[1, null]"], {"label": "json"}, "holds None instead of one number or name"),
        (["1", '["a", " "]'], {"label": "json"}, "has an empty label between others"),
        (["1", "[1, [2]]"], {"label": "json"}, r"holds \[2\] instead of one number or name"),
        ([f"text {n}" for n in range(9)], {"label": "txt"}, "9 different texts, such as 'text 0'"),
    ],
)
def test_labels_that_are_none_are_refused_when_they_are_wanted(tmp_path, texts, settings, why):
    suffix = settings.get("label", "cls")
    source = labeled(tmp_path / "in", texts, suffix, **settings)
    split = source.split("train")
    assert len(split) == len(texts)
    with pytest.raises(UserError, match=why) as error:
        split.labels()
    assert "data.labels=none" in str(error.value)


@pytest.mark.parametrize("before", [False, True])
def test_a_label_is_the_nearest_of_its_name(tmp_path, before):
    members, step = [], -1 if before else 1
    for n, name in enumerate(["x", "y/x", "i.v1", "i.v2", "i.v3"]):
        pair = [(f"{name}.jpg", jpeg(n)), (f"{name}.cls", str(n).encode())]
        members += pair[::step]
    members += [("p.png", jpeg(5)), ("q.png", jpeg(6)), ("q.cls", b"6"), ("p.cls", b"5")][::step]
    labels = one_shard(tmp_path / "in", members).split("train").labels()
    assert labels.tolist() == [0, 1, 2, 3, 4, *(5, 6)[::step]]


def test_images_without_labels_make_the_split_unlabeled(tmp_path):
    members = samples(0, 5)
    del members["0002.cls"]
    source = one_shard(tmp_path / "in", members, test_fraction=0.2)
    assert not source.has_labels
    assert "1 of 5 images have no .cls" in source.warnings(labels=True)[0]
    assert source.warnings(labels=False) == ()
    with pytest.raises(UserError, match="no labels"):
        source.split("test").labels()
    captions = labeled(tmp_path / "json", ['{"label": 0}'] * 4, "json", test_fraction=0.25)
    assert "set data.label=json" in captions.warnings(labels=True)[0]


def test_no_label_is_read_before_it_is_wanted(tmp_path, monkeypatch):
    members = samples(0, 6)
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    read = []
    plain = Disk.read

    def noting(self, shard, start, length):
        content = plain(self, shard, start, length)
        read.append(content)
        return content

    monkeypatch.setattr(Disk, "read", noting)
    source = Tar(path=str(tmp_path / "a.tar"))
    settings = SOURCES.schema("tar")(path=str(tmp_path / "a.tar"), pixels="original")
    stores = open_stores(open_source(settings), settings, 16, tmp_path / "data")
    assert source.has_labels
    stores["train"].images[:]
    assert not any(b".cls" in content[:100] for content in read)
    assert stores["test"].labels.tolist() == [int(names(source.split("test"))[0][:4]) % 3]
    assert any(b".cls" in content[:100] for content in read)


def test_an_index_holds_numbers_only(tmp_path):
    write_shards(tmp_path, {"a.tar": 30})
    index = Tar(path=str(tmp_path), test_fraction=0.1).split("train").index
    (file,) = tmp_path.glob(".ssdistill/*/records.npy")
    assert file.stat().st_size == 192 + 30 * RECORD.itemsize
    meta = json.loads(file.with_name("shards.json").read_text())
    assert len(json.dumps(meta)) < 500
    assert not any(isinstance(value, list | dict) and len(value) >= 30
                   for value in vars(index).values())  # fmt: skip


@pytest.mark.parametrize(("channels", "count"), [(None, 2), ([0], 4)])
def test_dicom_members_are_images_where_those_of_a_folder_are(tmp_path, channels, count):
    members = {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "c.dcm": b"x", "d.DICOM": b"x", "e.txt": b"x"}
    archives, files = tmp_path / "shards", tmp_path / "files"
    archives.mkdir()
    files.mkdir()
    (archives / "a.tar").write_bytes(tar_bytes(members))
    for name, content in members.items():
        (files / name).write_bytes(content)
    names = []
    for kind, path in (("tar", archives), ("folder", files)):
        schema = SOURCES.schema(kind)
        settings = schema(path=str(path), test_fraction=0, channels=channels)
        split = open_source(settings).split("train")
        names.append([split.name(row).rpartition("/")[2] for row in range(len(split))])
    assert names[0] == names[1] and len(names[0]) == count
