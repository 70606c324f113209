"""`ssdistill data pack`: what it takes, prints and refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdistill.commands.data.words import data_settings
from ssdistill.commands.main import main
from ssdistill.errors import UserError


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(12):
        place = tmp_path / "photos" / "ab"[n % 2] / f"{n}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50 + n, 3), dtype=np.uint8)).save(place)
    return tmp_path / "photos"


def test_a_folder_is_packed_and_verified(photos, tmp_path, capsys):
    words = ["data", "pack", str(photos), "--to", str(tmp_path / "out")]
    words += [
        "--short-side",
        "20",
        "--quality",
        "80",
        "--labels",
        "--shard-images",
        "4",
        "--verify",
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 10 images in 3 archives, ")
    assert lines[1].startswith("test: 2 images in 1 archive, ")
    assert lines[2].startswith("loss: views of 18 pixels from 10 images equal those of the ")
    assert lines[3:] == [
        f"checksums: {tmp_path / 'out' / 'checksums.sha256'}",
        f"to read them: data.kind=tar data.path={tmp_path / 'out'}",
        "verified: 4 archives as the checksums say",
    ]
    assert main(words) == 0
    assert "4 archives written before" in capsys.readouterr().out.splitlines()


def test_settings_may_stand_anywhere(photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "pack", "--to", str(out), "kind=folder", f"path={photos}", "test_fraction=0"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 12 images in 1 archive, ")
    assert lines[-1].endswith(f"data.path={out} data.test_fraction=0")


@pytest.mark.parametrize(
    ("channels", "words"), [("[4,0]", "[4, 0]"), ("{nir: 4, red: 0}", '{"nir": 4, "red": 0}')]
)
def test_channels_to_read_are_printed(tmp_path, capsys, channels, words):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((6, 9, 8, 5)))
    source = ["kind=npy", f"path={tmp_path / 'a.npy'}", f"channels={channels}"]
    assert main(["data", "pack", *source, "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f" 'data.channels={words}'")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "name the images: a config"),
        (["--quality", "90", "digits"], "--quality applies to images made smaller"),
        (["digits", "cifar10"], r"several sources \(digits, cifar10\); name one"),
        (["nothing-like-it"], "data=nothing-like-it: no such file or folder; name a"),
        (["digits", "pth=x"], "data.pth: no such setting"),
    ],
)
def test_what_is_missing_or_unknown_is_said_in_one_line(words, why, tmp_path, capsys):
    assert main(["data", "pack", *words, "--to", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(why, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--quality", "0"], ["--quality", "101"], ["--short-side", "x"]]
)
def test_numbers_out_of_range_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["data", "pack", "digits", "--to", "x", *option])
    assert option[1] in capsys.readouterr().err


def test_a_source_is_named_by_a_config_a_path_or_a_kind(photos, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"extends: quickstart.yaml\ndata: {{kind: folder, path: {photos}}}\n"
    )
    named = [data_settings([word]) for word in (str(photos), str(tmp_path / "mine.yaml"))]
    named.append(data_settings(["kind=folder", f"data.path={photos}"]))
    assert {(settings.kind, settings.path) for settings in named} == {("folder", str(photos))}
    assert data_settings(["quickstart"]).kind == "digits"
    assert data_settings(["quickstart", "image_size=8"]).image_size == 8
    assert data_settings([f"{tmp_path}/a.tar"]).kind == "tar"
    with pytest.raises(UserError, match="no such file or folder"):
        data_settings(["missing.yaml"])
