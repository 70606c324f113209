"""Files of embeddings: what they hold, what they take of memory, and what they go on from."""

import csv
import io
import json
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

from ssdistill.errors import UserError
from ssdistill.label_free import rows as row_pieces
from ssdistill.label_free.embedding import parts as parts_of_names
from ssdistill.label_free.embedding import writing
from ssdistill.label_free.embedding.batches import Encoding
from ssdistill.label_free.embedding.formats import FORMATS, format_of, neighbors_file
from ssdistill.label_free.embedding.in_memory import embeddings_of
from ssdistill.label_free.embedding.partial import SKIPPED, STATE, partial_folder
from ssdistill.label_free.embedding.parts import Part
from ssdistill.label_free.embedding.row_file import npy_header, safetensors_header
from ssdistill.label_free.embedding.writing import write_embeddings
from ssdistill.models.representation import Representation

KEY = {"model": "m" * 64}


def encoding(**settings):
    return Encoding("encoder", 8, torch.device("cpu"), **{"batch_size": 8} | settings)


def means(x_BCHW):
    """Means of the four quarters of each channel, (B, 12)."""
    return Representation(nn.functional.avg_pool2d(x_BCHW, 4).flatten(1))


def part_of(count, split="train", bad=(), seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Part(split, images, "{:03d}.png".format, f"{split}{seed}", dict.fromkeys(bad, "torn"))


def write(file, parts=None, encoder=means, key=KEY, settings=None, **options):
    parts = [part_of(21), part_of(5, "test")] if parts is None else parts
    own = encoding(**settings or {})
    return write_embeddings(encoder, parts, file, own, key, progress=False, **options)


def read(file):
    """Rows of a file, by what a user would take."""
    if file.suffix == ".npy":
        return np.load(file)
    if file.suffix == ".npz":
        return np.load(file)["embeddings"]
    if file.suffix == ".parquet":
        return np.stack(pq.read_table(file)["embedding"].to_pandas())
    if file.suffix == ".csv":
        return np.loadtxt(file, np.float32, delimiter=",", skiprows=1, usecols=range(2, 14))
    return load_file(file)["embeddings"]


def names_in(file):
    if file.suffix == ".npz":
        return np.load(file)["names"].tolist()
    if file.suffix == ".parquet":
        return pq.read_table(file)["name"].to_pylist()
    if file.suffix == ".csv":
        return [row[0] for row in csv.reader(io.StringIO(file.read_text()))][1:]
    return file.with_name(f"{file.name}.names.txt").read_text().splitlines()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_same_numbers_and_names_of_the_readable_images(suffix, tmp_path):
    file = tmp_path / f"a{suffix}"
    parts = [part_of(21, bad=(0, 3)), part_of(5, "test", seed=1)]
    written = write(file, parts, topk=2)
    images = np.concatenate([part.images for part in parts])
    expected = images.reshape(26, 2, 4, 2, 4, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(read(file), expected.reshape(26, 12), atol=1e-6)
    names = [f"{row:03}.png" for row in (1, 2, *range(4, 23), *range(5))]
    assert names_in(file) == written.names == names
    assert written.splits == 21 * ["train"] + 5 * ["test"]
    assert written.shape == (26, 12) and written.bytes == file.stat().st_size
    assert written.skipped == [("000.png", "torn"), ("003.png", "torn")]
    near = np.load(neighbors_file(file))
    unit = expected.reshape(26, 12) / np.linalg.norm(expected.reshape(26, 12), axis=1)[:, None]
    similar = unit @ unit.T
    np.fill_diagonal(similar, -2)
    assert (near["indices"] == np.argsort(-similar, 1)[:, :2]).all()
    np.testing.assert_allclose(near["similarities"], -np.sort(-similar, 1)[:, :2], atol=1e-6)
    assert not partial_folder(file).exists()


def test_a_name_in_csv_is_one_cell_whatever_is_in_it(tmp_path):
    names = ["plain", "a,b", 'say "hi"', "a\rb", "a\nb", "a\r\nb", "äöü"]
    images = part_of(len(names)).images
    write(tmp_path / "a.csv", [Part("train", images, names.__getitem__, "")])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == names and {len(row) for row in rows} == {14}
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("plain,train,")


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".csv"])
def test_patches_and_float16_are_read_as_they_were_written(suffix, tmp_path, make_encoder):
    file = tmp_path / f"a{suffix}"
    settings = {"layer": "patch", "half": True, "image_size": 16}
    own = Encoding("e", device=torch.device("cpu"), batch_size=8, **settings)
    encoder = make_encoder().eval()
    parts = [part_of(11)]
    written = write_embeddings(encoder, parts, file, own, KEY, progress=False)
    array, _ = embeddings_of(encoder, parts, own, progress=False)
    assert array.dtype == np.float16 and array.shape == written.shape == (11, 16, 16)
    found = read(file)
    if suffix == ".parquet":
        found = np.array([[*map(np.asarray, row)] for row in found])
    assert (found == array).all()
    # Their mean is the embedding of a network that pools its last map.
    pooled, _ = embeddings_of(encoder, parts, Encoding("e", 16, own.device, 8), progress=False)
    np.testing.assert_allclose(array.astype(np.float32).mean(1), pooled, rtol=2e-3, atol=2e-3)


def test_patches_of_a_transformer_are_its_tokens_without_the_class_token():
    from ssdistill.models.backbones import EncoderSettings, build_encoder

    args = {"embed_dim": 12, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 8}
    settings = EncoderSettings(name="vit_tiny_patch16_224", args=args)
    encoder = build_encoder(settings, 8).eval()
    array, _ = embeddings_of(encoder, [part_of(3)], encoding(layer="patch"), progress=False)
    x = torch.from_numpy(part_of(3).images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        tokens = encoder.net.forward_features((x - encoder.mean) / encoder.std)
    assert array.shape == (3, 4, 12)
    np.testing.assert_allclose(array, tokens[:, 1:], atol=1e-5)


def test_normalized_rows_have_length_one_and_those_of_zeros_stay():
    part = part_of(9)
    part.images[4] = 0
    array, names = embeddings_of(means, [part], encoding(normalize=True), progress=False)
    lengths = np.linalg.norm(array, axis=1)
    assert lengths[4] == 0
    np.testing.assert_allclose(np.delete(lengths, 4), 1, atol=1e-6)
    assert len(names) == 9


def test_neighbors_never_hold_the_row_itself_even_among_duplicates(tmp_path):
    part = part_of(20)
    part.images[:12] = part.images[0]
    write(tmp_path / "a.npy", [part], topk=4)
    near = np.load(tmp_path / "a.neighbors.npz")
    assert (near["indices"] != np.arange(20)[:, None]).all()
    assert (near["indices"][:12] < 12).all()
    assert (np.diff(near["similarities"], axis=1) <= 0).all()


@pytest.mark.parametrize("suffix", FORMATS)
def test_memory_does_not_grow_with_the_number_of_rows(suffix, tmp_path, monkeypatch):
    def colors(x_BCHW):
        return Representation(x_BCHW.mean((2, 3)))

    def peak(count):
        images = np.broadcast_to(part_of(1).images, (count, 8, 8, 3))
        parts = [Part("train", images, "{:06d}".format, "f")]
        tracemalloc.start()
        write(tmp_path / f"{count}{suffix}", parts, colors, settings={"batch_size": 250})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    monkeypatch.setattr(parts_of_names, "NAMES", 500)
    monkeypatch.setattr(row_pieces, "PIECE", 1000)
    few, many = 2_000, 40_000
    peak(few // 2)  # what is imported and made once
    # The rows alone are 12 bytes each, and names more than 50.
    assert peak(many) < peak(few) + 2 * (many - few)


class Interrupting:
    """An encoder that is interrupted at its n-th batch."""

    def __init__(self, at):
        self.left = at

    def __call__(self, x_BCHW):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return means(x_BCHW)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupted_file_is_gone_on_with_to_the_byte(suffix, at, tmp_path):
    whole, file = tmp_path / f"whole{suffix}", tmp_path / f"a{suffix}"
    write(whole, topk=2)
    with pytest.raises(KeyboardInterrupt):
        write(file, encoder=Interrupting(at), topk=2)
    assert not file.exists() and partial_folder(file).exists()
    counting = Interrupting(100)
    write(file, encoder=counting, topk=2)
    assert 100 - counting.left == 4 - (at - 1)  # batches that were not encoded before
    if suffix != ".safetensors":  # which holds the name of its file of names
        assert file.read_bytes() == whole.read_bytes()
    assert (read(file) == read(whole)).all() and names_in(file) == names_in(whole)
    assert neighbors_file(file).read_bytes() == neighbors_file(whole).read_bytes()


def begun(file, **options):
    with pytest.raises(KeyboardInterrupt):
        write(file, encoder=Interrupting(2), **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": {"model": "n" * 64}}, "model=mmm"),
        ({"settings": {"normalize": True}}, "normalize=False, now it is True"),
        ({"settings": {"batch_size": 4}}, "batch_size=8, now it is 4"),
        ({"topk": 3}, "topk=unknown, now it is 3"),
        ({"parts": [part_of(21, seed=7), part_of(5, "test")]}, "images of train=train0"),
        ({"parts": [part_of(21)]}, "images of test=test0, now it is unknown"),
    ],
)
def test_another_command_does_not_go_on_and_says_why(change, words, tmp_path):
    file = tmp_path / "a.npy"
    begun(file)
    with pytest.raises(UserError, match=words) as error:
        write(file, **change)
    assert "--force" in str(error.value) and str(partial_folder(file)) in str(error.value)
    write(file, **change, force=True)
    write(tmp_path / "b.npy", **change)
    assert file.read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_function_cannot_be_gone_on_with(tmp_path):
    file = tmp_path / "a.npy"
    begun(file, key={"model": None})
    with pytest.raises(UserError, match="cannot be compared"):
        write(file, key={"model": None})
    write(file, key={"model": None}, force=True)
    assert np.load(file).shape == (26, 12)


def test_files_that_exist_are_left_alone_unless_forced(tmp_path):
    for name in ("a.npy", "a.npy.names.txt", "a.neighbors.npz"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name}: already exists; .* --force"):
            write(tmp_path / "a.npy", topk=1)
        assert (tmp_path / name).read_text() == "mine"
        assert not partial_folder(tmp_path / "a.npy").exists()
        (tmp_path / name).unlink()
    (tmp_path / "a.npy").write_text("mine")
    write(tmp_path / "a.npy", force=True)
    assert np.load(tmp_path / "a.npy").shape == (26, 12)


def test_what_stands_in_a_folder_of_that_name_is_not_removed(tmp_path):
    folder = partial_folder(tmp_path / "a.npy")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    write(tmp_path / "a.npy", force=True)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1, "key": 3}', '{"format": 9}', "\x00", "[" * 9999]
)
def test_a_damaged_state_is_one_line_with_what_to_do(content, tmp_path):
    file = tmp_path / "a.npy"
    begun(file)
    (partial_folder(file) / STATE).write_text(content)
    with pytest.raises(UserError, match=r"state\.json: damaged .*; delete") as error:
        write(file)
    assert "\n" not in str(error.value)


def test_rows_that_were_cut_off_are_not_gone_on_with(tmp_path):
    file = tmp_path / "a.npy"
    begun(file)
    with open(partial_folder(file) / "rows", "r+b") as rows:
        rows.truncate(300)
    with pytest.raises(UserError, match="rows: 300 bytes, but 576 were written; delete"):
        write(file)


def test_images_that_fail_when_they_are_decoded_have_no_row_before_and_after_a_kill(tmp_path):
    def broken():
        part = part_of(21)
        part.failed.update({2: "torn", 9: "torn"})
        return part

    write(tmp_path / "whole.npy", [broken()], topk=1)
    file = tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        write(file, [broken()], Interrupting(2), topk=1)
    lines = (partial_folder(file) / SKIPPED).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [["train", 2, 2, "torn"]]
    resumed = part_of(21)
    resumed.failed[9] = "torn"  # row 2 is known from the state
    written = write(file, [resumed], topk=1)
    assert written.shape == (19, 12) and dict(written.skipped) == dict.fromkeys(
        ["002.png", "009.png"], "torn"
    )
    assert file.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert names_in(file) == [f"{row:03}.png" for row in range(21) if row not in (2, 9)]


def test_a_full_disk_is_said_before_the_rows_are_written(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})  # bytes
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"26 rows of 12 numbers take 0\.0 MB, but only"):
        write(tmp_path / "a.npy")


def test_a_disk_that_fills_up_leaves_what_can_be_gone_on_with(tmp_path, monkeypatch):
    append = writing.RowFile.append

    def full(rows, block):
        if rows.rows:
            raise OSError(28, "No space left on device")
        append(rows, block)

    with monkeypatch.context() as patch:
        patch.setattr(writing.RowFile, "append", full)
        with pytest.raises(UserError, match=r"no space left on the disk.*run the same command"):
            write(tmp_path / "a.npy")
    write(tmp_path / "a.npy")
    write(tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("output", "settings", "words"),
    [
        (lambda x: Representation(x), {}, r"gave \(8, 3, 8, 8\) for 8 images"),
        (lambda x: Representation(x.flatten(1)[:3]), {}, r"gave \(3, 192\) for 8 images"),
        (lambda x: Representation(x.flatten(1) / 0), {}, "the embedding of 000.png is not finite"),
        (lambda x: Representation(x.flatten(1) * 1e9), {"half": True}, "beyond float16"),
        (means, {"layer": "patch"}, "gives embeddings only; pass the PyTorch model"),
        (means, {"layer": "projection"}, "has no projector"),
        (means, {"layer": "pach"}, r"unknown layer \(did you mean 'patch'\?\)"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(output, settings, words, tmp_path):
    with pytest.raises(UserError, match=words):
        write(tmp_path / "a.npy", encoder=output, settings=settings)
    assert not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("a.parqet", "embedding", r"unknown ending '\.parqet' \(did you mean '\.parquet'\?\)"),
        ("a", "embedding", "no ending; name a file that ends in one of .npy"),
        ("a.csv", "patch", "several vectors for each image"),
    ],
)
def test_endings_are_checked(name, layer, words, tmp_path):
    with pytest.raises(UserError, match=words):
        format_of(tmp_path / name, layer)


@pytest.mark.parametrize("topk", [0, -1, 26, 2.5, True])
def test_neighbors_that_there_are_not_are_refused(topk, tmp_path):
    with pytest.raises(UserError, match="topk="):
        write(tmp_path / "a.npy", topk=topk)


@pytest.mark.parametrize("shape", [(0,), (7, 3), (10**12, 4096, 4096)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_a_header_has_one_length_whatever_it_announces(shape, dtype):
    header = npy_header(shape, np.dtype(dtype))
    assert len(header) == len(npy_header((0,), np.dtype(np.float32))) == 192
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype(dtype))
    if dtype != np.int64:
        make = safetensors_header({"names": "é" * 200})
        lengths = {len(make(rows, np.dtype(dtype))) for rows in ((0, *shape[1:]), shape)}
        assert len(lengths) == 1


def test_facts_about_the_rows_are_in_the_files_that_have_a_place_for_them(tmp_path):
    write(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {
            "model": KEY["model"], "layer": "embedding", "normalize": "False",
            "names": "a.safetensors.names.txt",
        }  # fmt: skip
    write(tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").metadata[b"model"] == KEY["model"].encode()


def test_names_with_line_breaks_or_bytes_that_are_no_text_keep_one_line_each(tmp_path):
    odd = ["a\nb.png", "\udcff.png", 'ü,"x".png', "a\u2028b.png", "plain.png"]
    for suffix in FORMATS:
        part = part_of(5)
        part = Part("train", part.images, odd.__getitem__, "f")
        write(tmp_path / f"a{suffix}", [part])
        found = names_in(tmp_path / f"a{suffix}")
        assert found[1:3] == [r"\udcff.png", 'ü,"x".png'] and found[4] == "plain.png"
        beside = suffix in (".npy", ".safetensors")
        assert found[0] == (r"a\nb.png" if beside else "a\nb.png")
