"""The command `ssdistill data check`."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from ssdistill.commands.main import main

SIDE = 32


def smooth(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        smooth(number).save(f"photos/{number:02}.png")
    smooth(5).save("photos/near.jpg", quality=70)
    (tmp_path / "photos" / "copy.png").write_bytes((tmp_path / "photos" / "03.png").read_bytes())
    (tmp_path / "photos" / "<b>.jpg").write_bytes(b"\xff\xd8\xff no more")
    return "photos"


def encoder(path):
    """An encoder of 4 x 4 means, less the mean of all."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["f", "m"], ["z"]),
    ]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, SIDE, SIDE])
    z_BD = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", 48])
    graph = helper.make_graph(nodes, "g", [images], [z_BD])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_everything_found_is_printed_written_and_shown(photos, capsys):
    assert main(["data", "check", photos, "--json", "a.json", "--out", "a.html"]) == 0
    printed = capsys.readouterr().out
    for line in ("unreadable 1 <b>.jpg", "duplicates 1 1 group, first"):
        assert line in " ".join(printed.split())
    facts = json.loads(Path("a.json").read_text())
    assert facts["counts"]["unreadable"] == facts["counts"]["duplicates"] == 1
    assert {f["name"] for f in facts["duplicates"][0]} == {"copy.png", "03.png"}
    page = Path("a.html").read_text()
    assert "&lt;b&gt;.jpg" in page and "<b>.jpg" not in page
    assert page.count("data:image/jpeg;base64,") == 2 + 14 - (facts["images"]["test"])
    assert "http" not in page.replace("http-equiv", "")


def test_a_source_without_a_readable_image_is_listed_as_such(photos, capsys):
    for path in Path(photos).iterdir():
        path.write_bytes(b"x")
    assert main(["data", "check", photos, "--out", "a.html"]) == 0
    assert "unreadable 15" in " ".join(capsys.readouterr().out.split())


def test_near_duplicates_are_found_by_an_encoder(photos, capsys):
    words = ["data", "check", photos, "--near", encoder("a.onnx"), "--json", "a.json"]
    assert main(words) == 0
    (group,) = json.loads(Path("a.json").read_text())["near_duplicates"]
    assert {f["name"] for f in group} == {"near.jpg", "05.png"}
    # Closer than any copy with losses.
    assert main([*words, "--cosine", "1"]) == 0
    assert json.loads(Path("a.json").read_text())["near_duplicates"] == []


def test_arrays_and_settings_are_named_by_words(photos, capsys):
    np.save("a.npy", np.zeros((4, 9, 9), np.uint8))
    assert main(["data", "check", "kind=npy", "path=a.npy", "test_fraction=0"]) == 0
    assert "constant 4" in " ".join(capsys.readouterr().out.split())


def test_verify_says_so_where_nothing_is_known(photos, capsys):
    assert main(["data", "check", photos, "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "train: there is no index to verify in runs/data" in printed and "changed" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "data=nowhere: no such file or folder; name a"),
        (["photos", "--out", "photos"], "--out photos: is a folder"),
        (["photos", "--near", "nothing.onnx"], "nothing.onnx"),
        (["photos", "max_pixel=3"], "data.max_pixel: no such setting"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(photos, capsys, words, message):
    assert main(["data", "check", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_similarity_is_between_0_and_1(photos, capsys):
    for value in ("2", "0", "x"):
        with pytest.raises(SystemExit):
            main(["data", "check", photos, "--cosine", value])
        assert "is not a similarity between 0 and 1" in capsys.readouterr().err
