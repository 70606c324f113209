"""Shards that are written: what is in them, interruptions, and what views lose."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tar_files import jpeg

from ssdistill.data.opening import open_originals, open_source, open_stores
from ssdistill.data.packing import checksums, writer
from ssdistill.data.packing.checksums import verify
from ssdistill.data.packing.encoding import safe_name, smaller
from ssdistill.data.packing.loss import measure
from ssdistill.data.packing.writer import Packing, pack
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.data.sources.tar import Tar
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

CLASSES = ("ant", "bee", "cat")


def photo(seed: int, height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path) -> Folder:
    """23 labeled images; one with a long name, one that no suffix tells the format of."""
    folder = tmp_path / "images"
    for n in range(23):
        place = folder / CLASSES[n % 3] / f"{n:03d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(n))
    (folder / "ant" / f"{'ü' * 90}.jpg").write_bytes(jpeg(23))
    (folder / "bee" / "bare").write_bytes(jpeg(24))
    return Folder(path=str(folder))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def test_what_is_packed_is_what_was(images, tmp_path):
    packed = pack(images, tmp_path / "out", Packing(shard_images=4, labels=True))
    source = Tar(path=str(tmp_path / "out"))
    for name in ("train", "test"):
        before, after = images.split(name), source.split(name)
        expected = [
            "bee/bare.jpg" if n == "bee/bare" else n for n in map(before.name, range(len(before)))
        ]
        assert [after.name(i) for i in range(len(after))] == expected
        assert [after.read(i) for i in range(len(after))] == [
            before.read(i) for i in range(len(before))
        ]
        assert after.labels().tolist() == before.labels().tolist()
        one, other = (
            open_originals(s, name, StoreSettings(), 16, tmp_path / f"data{k}")
            for k, s in enumerate((images, source))
        )
        assert one.fingerprint == other.fingerprint
    assert (tmp_path / "out" / "classes.txt").read_text() == "ant\nbee\ncat\n"
    assert packed.num_new == len(packed.shards) == len(list((tmp_path / "out").glob("*.tar")))
    assert min(packed.shards, key=list(packed.shards).index) == "train-000000.tar"
    assert list(packed.shards)[-1].startswith("test-")
    assert verify(tmp_path / "out") == len(packed.shards)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_labels_are_written_where_they_are_wanted(images, tmp_path):
    pack(images, tmp_path / "out", Packing())
    assert not any(name.endswith(".cls") for name in members_of(tmp_path / "out/train-000000.tar"))
    assert not (tmp_path / "out" / "classes.txt").exists()
    bare = tmp_path / "bare"
    bare.mkdir()
    for n in range(3):
        (bare / f"{n}.jpg").write_bytes(jpeg(n))
    with pytest.raises(UserError, match="has no labels; omit --labels to pack"):
        pack(Folder(path=str(bare)), tmp_path / "out2", Packing(labels=True))


def test_an_interrupted_packing_goes_on_to_the_same_bytes(images, tmp_path, monkeypatch):
    packing = Packing(short_side=12, quality=80, shard_images=3, labels=True)
    pack(images, tmp_path / "whole", packing)
    plain, seen = writer.member, []

    def killed(split, row, **more):
        seen.append(row)
        if len(seen) > 10:
            raise KeyboardInterrupt
        return plain(split, row, **more)

    monkeypatch.setattr(writer, "member", killed)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        pack(images, tmp_path / "out", packing)
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    assert len(done) == 3
    assert list((tmp_path / "out").glob("*.partial"))
    monkeypatch.undo()
    # One that was recorded, and is not there as it was.
    (tmp_path / "out" / "train-000001.tar").write_bytes(b"half")
    packed = pack(images, tmp_path / "out", packing)
    assert packed.num_new == len(packed.shards) - 2
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    for name in ("train-000000.tar", "train-000002.tar"):
        assert (tmp_path / "out" / name).stat().st_mtime_ns == done[name]
    assert pack(images, tmp_path / "out", packing).num_new == 0


def test_a_folder_of_something_else_is_left_alone(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(first: mine.txt\)"):
        pack(images, tmp_path / "out", Packing())
    pack(images, tmp_path / "in", Packing())
    with pytest.raises(UserError, match=r"with other settings \(short_side\)"):
        pack(images, tmp_path / "in", Packing(short_side=9))
    (tmp_path / "images" / "ant" / "000.jpg").write_bytes(jpeg(77))
    with pytest.raises(UserError, match=r"from other images or with other settings \(images\)"):
        pack(Folder(path=images.path), tmp_path / "in", Packing())
    odd = '{"task": {}, "shards": {"train-000000.tar": 1}}'
    for text in ("[[[", "[]", '{"task": 3, "shards": {}}', odd):
        (tmp_path / "in" / "pack.json").write_text(text)
        with pytest.raises(UserError, match=r"pack.json: damaged"):
            pack(images, tmp_path / "in", Packing())


def test_what_cannot_be_read_is_left_out_and_counted(images, tmp_path):
    path = tmp_path / "images" / "cat" / "002.jpg"
    path.write_bytes(jpeg(2)[:200])
    source = Folder(path=images.path, test_fraction=0)
    packed = pack(source, tmp_path / "out", Packing(short_side=10, shard_images=9), max_bad=0.1)
    left_out = [entry for shard in packed.shards.values() for entry in shard.left_out]
    assert [name for name, _ in left_out] == ["cat/002.jpg"]
    assert sum(shard.images for shard in packed.shards.values()) == 24
    with pytest.raises(UserError, match=r"more than 1.0% of 25 images cannot be read"):
        pack(source, tmp_path / "out2", Packing(short_side=10), max_bad=0.01)
    # An original is not decoded, so it is packed as it is.
    assert sum(s.images for s in pack(source, tmp_path / "out3", Packing()).shards.values()) == 25


def test_a_shard_that_is_not_as_it_was_is_named(images, tmp_path):
    pack(images, tmp_path / "out", Packing(shard_images=5))
    shard = tmp_path / "out" / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    assert len(Tar(path=str(tmp_path / "out"), verify=True).split("train")) > 0
    content[700] ^= 1
    shard.write_bytes(content)
    for check in (verify, lambda out: Tar(path=str(out), verify=True).split("train")):
        with pytest.raises(UserError, match=r"train-000001.tar: .* copy it again, or delete it"):
            check(tmp_path / "out")
    assert len(Tar(path=str(tmp_path / "out")).split("train")) > 0
    shard.unlink()
    with pytest.raises(UserError, match=r"train-000001.tar: cannot be read"):
        verify(tmp_path / "out")
    (tmp_path / "out" / "checksums.sha256").write_text("")
    with pytest.raises(UserError, match="no checksum for train-000000"):
        Tar(path=str(tmp_path / "out"), verify=True).split("train")
    with pytest.raises(UserError, match="verification requires the checksums"):
        verify(tmp_path)
    with pytest.raises(UserError, match=r"data.verify: memory://x/a.tar is not on a local disk"):
        Tar(path="memory://x/a.tar", test="memory://x/b.tar", verify=True).split("train")


def test_sums_of_files_elsewhere_are_not_read(tmp_path, monkeypatch):
    names = ("../a.tar", "/etc/passwd", "..", "b.tar")
    text = "".join(f"{'0' * 64}  {name}\n" for name in names)
    (tmp_path / "checksums.sha256").write_text(text)
    opened = []
    monkeypatch.setattr(checksums, "_sha256", lambda path: opened.append(path) or "0" * 64)
    assert verify(tmp_path) == 1
    assert opened == [tmp_path / "b.tar"]


def encoded(image: Image.Image, format: str, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


def test_larger_images_are_made_smaller_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = smaller(encoded(photo(0, 60, 90), "JPEG", exif=exif), 30, 90)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.size, image.format, image.getexif().get(0x0112)) == ((30, 45), "JPEG", None)
    assert smaller(encoded(photo(0, 30, 90), "PNG"), 30, 90) is None
    deep = Image.fromarray(np.full((90, 90), 4000, dtype=np.uint16))
    assert smaller(encoded(deep, "PNG"), 30, 90) is None


@pytest.fixture
def photos(tmp_path) -> Folder:
    (tmp_path / "photos").mkdir()
    for n in range(6):
        photo(n, 64 + n, 96).save(tmp_path / "photos" / f"{n}.png")
    return Folder(path=str(tmp_path / "photos"), test_fraction=0)


def test_views_lose_more_the_smaller_and_the_coarser_images_are(photos):
    raw = photos.split("train")
    found = {key: measure(raw, *key) for key in ((56, 95), (56, 30), (16, 95))}
    assert found[56, 95] == measure(raw, 56, 95)
    assert (found[56, 95].view, found[56, 95].num_images) == (49, 6)
    assert found[56, 95].median > found[56, 30].median + 1
    assert found[56, 95].median > found[16, 95].median + 3
    assert all(loss.worst < loss.median for loss in found.values())
    # With edges rounded to pixels of the original, a shift would be measured: 36.2.
    assert found[56, 95].worst > 40
    assert measure(raw, 200, 90) is None


def test_arrays_are_packed_without_loss(tmp_path):
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    deep = rng.integers(0, 4000, (6, 9, 7), dtype=np.uint16)
    for name, array in (("plain", plain), ("deep", deep)):
        np.savez(tmp_path / f"{name}.npz", train_images=array, test_images=array[:2])
        source = Npz(path=str(tmp_path / f"{name}.npz"))
        pack(source, tmp_path / name, Packing())
        split = Tar(path=str(tmp_path / name)).split("train")
        assert len(split) == 6
        assert np.array_equal(np.stack([split.image(i) for i in range(6)]), array)


def test_a_packing_of_shards_is_the_same_again(images, tmp_path):
    pack(images, tmp_path / "one", Packing(shard_images=5, labels=True))
    source = Tar(path=str(tmp_path / "one"))
    pack(source, tmp_path / "two", Packing(shard_images=5, labels=True))
    one, two = (files_of(tmp_path / name) for name in ("one", "two"))
    assert {n: c for n, c in one.items() if n.endswith((".tar", ".sha256"))} == {
        n: c for n, c in two.items() if n.endswith((".tar", ".sha256"))
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("/etc/b.jpg", "etc/b.jpg"),
        ("../../b.jpg", "b.jpg"),
        ("a/.hidden/.b.jpg", "a/hidden/b.jpg"),
        ("a\\b.jpg", "a_b.jpg"),
        ("__MACOSX/b.jpg", "b.jpg"),
        ("..", "image"),
    ],
)
def test_names_are_such_as_readers_do_not_pass_over(name, expected):
    assert safe_name(name) == expected


def test_channels_of_arrays_and_files_are_packed_as_they_are(tmp_path):
    array = np.random.default_rng(0).integers(0, 999, (8, 6, 7, 5)).astype("u2")
    np.save(tmp_path / "a.npy", array)
    settings = SOURCES.schema("npy")(
        path=str(tmp_path / "a.npy"), channels=[4, 1], test_fraction=0, window="full"
    )
    pack(open_source(settings), tmp_path / "shards", Packing())
    shards = {"path": str(tmp_path / "shards"), "test_fraction": 0, "channels": [4, 1]}
    again = SOURCES.schema("tar")(**shards, window="full")
    stores = [
        open_stores(open_source(one), one, [6, 7], tmp_path / one.kind)["train"]
        for one in (settings, again)
    ]
    assert np.array_equal(*(store.images for store in stores))
    with pytest.raises(UserError, match=r"data\.channels is set"):
        pack(open_source(settings), tmp_path / "small", Packing(short_side=4))
