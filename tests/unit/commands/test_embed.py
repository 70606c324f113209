"""The command `ssdistill embed`: what it parses and prints, and what it refuses."""

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ssdistill
from ssdistill.artifacts.artifact import save_encoder
from ssdistill.commands.main import main
from ssdistill.data.sources.folder import Folder
from ssdistill.errors import UserError
from ssdistill.label_free.embedding import writing
from ssdistill.models.backbones import EncoderSettings, build_encoder


def picture(seed, mode="RGB", size=(20, 24)):
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 60000, size, dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def place(tmp_path, monkeypatch, make_encoder):
    """A folder with ``photos``, one of them unreadable, and ``model``."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(30):
        picture(number).save(f"photos/{number:02}.png")
    Path("photos/bad.jpg").write_bytes(b"\xff\xd8\xff no more")
    save_encoder(make_encoder().eval(), "model")
    return tmp_path


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_names_beside_vectors_tell_which_images_they_are_of(place, capsys):
    assert main(["embed", "model", "photos", "--out", "a.npy", "--topk", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("skipped: 1 image that cannot be read, first bad.jpg (")
    assert out[1:3] == ["names: a.npy.names.txt", "neighbors: a.neighbors.npz"]
    assert out[3].startswith("a.npy: 30 rows of 16 float32, 2.1 kB, ")
    names = Path("a.npy.names.txt").read_text().splitlines()
    # Training images first, then test images.
    splits = [Folder(path="photos").split(name) for name in ("train", "test")]
    expected = [split.name(row) for split in splits for row in range(len(split))]
    assert names == [name for name in expected if name != "bad.jpg"]
    rows = np.load("a.npy")
    for name in ("07.png", "21.png"):
        one, _ = ssdistill.embed("model", np.asarray(squared(f"photos/{name}"))[None])
        np.testing.assert_allclose(rows[names.index(name)], one[0], atol=1e-5)


def squared(path):
    """An image as a store of 16 pixels has it."""
    from ssdistill.data.resizing import fitted

    return fitted(np.asarray(Image.open(path)), 16, "crop")


def test_settings_of_the_data_follow_its_name(place, capsys):
    words = ["embed", "model", "photos", "test_fraction=0", "data.image_size=16"]
    assert main([*words, "--out", "a.csv"]) == 0
    lines = Path("a.csv").read_text().splitlines()
    assert lines[0].startswith("name,split,0,1,") and len(lines) == 31
    assert [line.split(",")[0] for line in lines[1:]] == [f"{n:02}.png" for n in range(30)]
    assert {line.split(",")[1] for line in lines[1:]} == {"train"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "a model is required"),
        ("model", "name the images, too"),
        ("model photos", "--out FILE is required"),
        ("model photos --out a.txt", "unknown ending '.txt'"),
        ("model photos --out a.npy --layer tokens", "layer=tokens: unknown layer"),
        ("model photos --out a.csv --layer patch", "several vectors for each image"),
        ("model photos --out a.npy --layer projection", "model has no projector"),
        ("model photos --out a.npy --split val", "split=val: choose one of train, test, all"),
        ("model photos test_fraction=0 --out a.npy --split test", "there are no test images"),
        ("model photos --out a.npy --topk 30", "topk=30: more than the 29 other images"),
        ("model photos --out a.npy --layer patch --topk 3", "omit topk"),
        ("model photos --out a.npy --batch-size 0", "batch_size=0"),
        ("model photos --out there.npy", "there.npy: already exists; name another file, or add"),
        ("model photos --out folder.npy", "folder.npy: is a folder"),
        ("model photos --out there.npy/a.npy", "out there.npy/a.npy: cannot be written"),
        ("nothing photos --out a.npy", "nothing: no such file or folder"),
        (
            "model nothing --out a.npy",
            "data=nothing: no such file or folder; name a file, a folder",
        ),
        ("model empty --out a.npy", "no images in this folder"),
        ("model photos max_bad=0 --out a.npy", "data.max_bad"),
        ("gray photos --out a.npy", "gray takes images of 1 channel, but the data has 3"),
    ],
)
def test_what_is_wrong_is_one_line(words, error, place, capsys):
    Path("there.npy").write_text("mine")
    Path("folder.npy").mkdir()
    Path("empty").mkdir()
    save_gray()
    assert main(["embed", *words.split()]) == 2
    assert error in last_error(capsys)
    assert not Path("a.npy").exists() and not Path("a.npy.partial").exists()
    assert Path("there.npy").read_text() == "mine"


def save_gray():
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_type": "deep"}
    settings = {"name": "resnet10t", "args": {**args, "stem_width": 8}, "stem_stride": 2}
    encoder = build_encoder(EncoderSettings(**settings), 16, (0.5,), (0.25,))
    save_encoder(encoder.eval(), "gray")


def test_a_gray_model_embeds_one_channel_and_deep_images_are_read(place, capsys):
    save_gray()
    Path("deep").mkdir()
    for number in range(4):
        picture(number, "I;16").save(f"deep/{number}.png")
    words = ["deep", "channels=[0]", "test_fraction=0", "--out", "gray.npy"]
    assert main(["embed", "gray", *words]) == 0
    assert np.load("gray.npy").shape == (4, 16)
    assert main(["embed", "model", "deep", "--out", "deep.npy"]) == 0
    assert np.load("deep.npy").shape == (4, 16)


def test_a_missing_library_is_named_with_what_installs_it(place, capsys, monkeypatch):
    from ssdistill.label_free.embedding import formats

    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert main(["embed", "model", "photos", "--out", "a.parquet"]) == 2
    assert "requires pyarrow: pip install 'ssdistill[arrow]'" in last_error(capsys)


def test_images_damaged_behind_their_header_have_no_row(place, capsys):
    """Their header is right, so that only decoding tells."""
    Path("large").mkdir()
    for number in range(40):
        picture(number, size=(120, 130)).save(f"large/{number:02}.png")
    with open("large/05.png", "r+b") as file:
        file.seek(20_000)
        file.write(bytes(500))
    words = ["large", "image_size=112", "test_fraction=0", "pixels=original"]
    assert main(["embed", "model", *words, "--out", "a.npy", "--batch-size", "8"]) == 0
    assert "skipped: 1 image that cannot be read, first 05.png (" in capsys.readouterr().out
    names = Path("a.npy.names.txt").read_text().splitlines()
    assert names == [f"{n:02}.png" for n in range(40) if n != 5]
    rows, names = ssdistill.embed("model", {"kind": "folder", "path": "large", "test_fraction": 0,
                                            "image_size": 112, "pixels": "original"})  # fmt: skip
    assert len(rows) == len(names) == 39 and np.allclose(rows, np.load("a.npy"), atol=1e-6)
    assert main(["embed", "model", *words, "max_bad=0.01", "--out", "b.npy"]) == 2
    assert "05.png" in (error := last_error(capsys)) and "data.max_bad" in error


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(place, capsys, monkeypatch):
    words = ["embed", "model", "photos", "--out", "a.npz", "--batch-size", "8"]
    assert main([*words[:4], "b.npz", *words[5:]]) == 0
    append = writing.RowFile.append

    def interrupted(rows, block):
        append(rows, block)
        if rows.rows >= 16:
            signal.raise_signal(signal.SIGINT)

    # Of what runs in the background the shell ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(writing.RowFile, "append", interrupted)
        assert main(words) == 130
    signal.signal(signal.SIGINT, before)
    assert "Run the same command to resume." in last_error(capsys)
    assert json.loads(Path("a.npz.partial/state.json").read_text())["rows"] == 8
    Path("photos/00.png").unlink()
    assert main(words) == 2
    assert "a.npz: was begun with images of" in last_error(capsys)
    picture(0).save("photos/00.png")
    assert main(words) == 0
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_a_network_in_memory_is_known_by_its_numbers(place):
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 5))
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    written = ssdistill.embed(net, images, out="a.npy", half=True)
    assert written.shape == (9, 5) and written.dtype == np.float16
    assert written.names == [f"{number:06d}" for number in range(9)]
    array, names = ssdistill.embed(net, images)
    assert (np.load("a.npy") == array.astype(np.float16)).all() and names == written.names
    assert net.training  # as it came
    gray, _ = ssdistill.embed(lambda x_BCHW: x_BCHW.flatten(1), images[..., 0])
    assert gray.shape == (9, 3 * 256)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "non-empty uint8"),
        (np.zeros((4, 5, 8, 8), np.uint8), {}, "put the channels last"),
        (np.full((4, 8, 8, 3), 255.0), {}, r"astype\('uint8'\)"),
        (["a.png", "b.png"], {}, "a.png: No such file"),
        ([["a"], ["b"]], {}, "an item is no image"),
        (np.full((4, 8, 8, 3), "a"), {}, "pass numbers"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"split": "test"}, "an array has no splits"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"data_settings": {"max_bad": 1}}, "not to an array"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"topk": 3}, "pass out"),
    ],
)
def test_arrays_that_hold_no_images_are_refused(data, options, words):
    with pytest.raises(UserError, match=words):
        ssdistill.embed(lambda x_BCHW: x_BCHW.flatten(1), data, **options)


def test_the_model_is_known_by_its_files(place):
    from ssdistill.evaluate.opening.encoders import open_encoder
    from ssdistill.evaluate.opening.identity import model_sha256

    digest = hashlib.sha256()
    for name in ("model.safetensors", "model.json"):
        digest.update(f"{name}\n".encode() + Path("model", name).read_bytes())
    assert model_sha256(open_encoder("model")) == digest.hexdigest()
    net = nn.Linear(2, 2)
    before = model_sha256(open_encoder(net))
    net.bias.data[0] += 1
    assert before != model_sha256(open_encoder(net))
    assert model_sha256(open_encoder(lambda x: x)) is None


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out and "--topk K" in out and ".safetensors" in out
