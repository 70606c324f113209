"""Two processes of which one has something else than the other: refused before anything starts."""

from pathlib import Path

import numpy as np
import pytest
from forked import run_forked
from PIL import Image
from test_several_processes import environment

WORDS = (
    "run", "quickstart", "data.kind=folder", "data.path=images", "data.image_size=8",
    "data.test_fraction=0.2", "pretrain.batch_size=8", "pretrain.steps=2", "distill.batch_size=8",
    "distill.steps=2", "control=null", "compress=[]", "evaluate=null", "device.accelerator=cpu",
    "device.threads=1", "device.precision=fp32", "device.memory_format=contiguous",
)  # fmt: skip
VERSION = "import ssdistill.chain.shared_training as s; s.code_sha256 = lambda: 'another'"
DIFFERENT = {
    "config": ({"words": ["pretrain.optim.lr=0.5"]}, "has another config than process 0"),
    "images": ({"cwd": "elsewhere"}, "has other images than process 0"),
    "code": ({"before": VERSION}, "runs another version of ssdistill than process 0"),
    "runs folder": ({"words": ["--runs", "own"]}, "does not see the runs folder of process 0"),
}


def draw(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (20, 8, 8, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("two")
    draw(place / "here" / "images", seed=0)
    draw(place / "elsewhere" / "images", seed=1)
    return place


@pytest.fixture(scope="module")
def outcomes(place) -> dict:
    cases = []
    for name, (different, _) in DIFFERENT.items():
        runs = ["--runs", str(place / f"runs {name}")]
        first = {"words": [*WORDS, *runs], "cwd": str(place / "here")}
        second = dict(first)
        if "cwd" in different:
            second["cwd"] = str(place / different["cwd"])
        second["before"] = different.get("before", "")
        if words := different.get("words"):
            # The last one counts.
            second["words"] = [*first["words"], *words]
        cases.append([first, second])
    return dict(zip(DIFFERENT, run_forked(cases, environment()), strict=True))


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_said_in_one_line_and_nothing_is_trained(name, place, outcomes):
    _, expected = DIFFERENT[name]
    statuses, said = outcomes[name]
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith(f"error: process 1: {expected}; ")
    assert statuses[0] == 2 and "Traceback" not in said
    assert not list(place.glob("*/stages")) and not list(place.glob("*/*/stages"))
    assert not list(place.glob("*/.processes-*"))
