"""Data sources that can be read without a download pass the checks for those of plug-ins."""

import numpy as np
import pytest
from own_kinds import every_case
from PIL import Image

from ssdistill.settings.registry import SOURCES
from ssdistill.testing import SOURCE_CHECKS, Candidate
from ssdistill.testing.candidate import DESCRIBED

COUNT = 24


def images(count=COUNT):
    noise = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3))
    return noise.astype(np.uint8), np.arange(count) % 2


def digits(folder):
    return {}


def npz(folder):
    pixels, labels = images()
    arrays = {"train_images": pixels[8:], "train_labels": labels[8:]}
    np.savez(folder / "a.npz", **arrays, test_images=pixels[:8], test_labels=labels[:8])
    return {"path": str(folder / "a.npz")}


def npy(folder):
    np.save(folder / "a.npy", images()[0])
    return {"path": str(folder / "a.npy")}


def folder(folder):
    for number, (pixels, label) in enumerate(zip(*images(), strict=True)):
        place = folder / "images" / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    return {"path": str(folder / "images")}


def hdf5(folder):
    h5py = pytest.importorskip("h5py")
    pixels, labels = images()
    with h5py.File(folder / "a.h5", "w") as file:
        file["images"], file["labels"] = pixels, labels
    return {"path": str(folder / "a.h5")}


MADE = {"digits": digits, "npz": npz, "npy": npy, "folder": folder, "hdf5": hdf5}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """``source(kind)``: a candidate of it, with tiny files."""
    known = {}

    def get(kind):
        if kind not in known:
            settings = MADE[kind](tmp_path_factory.mktemp(kind))
            known[kind] = Candidate(SOURCES, SOURCES[kind], settings)
        return known[kind]

    return get


@pytest.mark.parametrize("name", SOURCE_CHECKS)
@pytest.mark.parametrize("kind", MADE)
def test_a_source(kind, name, source):
    SOURCE_CHECKS[name].run(source(kind))


@every_case(DESCRIBED, {kind: Candidate(SOURCES, cls) for kind, cls in SOURCES.classes.items()})
def test_every_source_is_described(check, candidate):
    check.run(candidate)
