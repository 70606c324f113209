from types import SimpleNamespace

import pytest

from ssdistill.data.form import Form
from ssdistill.data.pixel_facts import differences, pixel_facts

RGB = {"channels": None, "names": None, "windows": None}
BANDS = Form(channels=(3, 1), names=("red", "nir"))
TWO = {"channels": [3, 1], "names": ["red", "nir"], "windows": [[0, 4000], [100, 200]]}


def images(**facts):
    return SimpleNamespace(**{"form": Form(), "window": None, "windows": None, **facts})


def test_facts_of_bands_and_of_deep_rgb():
    deep = images(form=BANDS, windows=((0, 4000), (100, 200)))
    assert pixel_facts(deep) == TWO
    assert pixel_facts(images(window=(0, 65535)))["windows"] == [[0, 65535]]
    assert pixel_facts(images()) == RGB


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        # Bands of another file may have other numbers: names say more.
        ({"channels": [0, 5]}, []),
        ({"names": ["nir", "red"]}, ["channels red, nir but will receive channels nir, red"]),
        ({"names": None, "channels": [1, 3]}, ["channels 3, 1 but will receive channels 1, 3"]),
        ({"windows": [[0, 4000], [100, 250]]}, ["[100, 200]] but will receive windows [[0"]),
        ({"windows": [[0, 4000.000001], [100, 200]]}, []),
        ({"windows": None}, ["will receive images of 8 bits"]),
        (RGB, ["will receive 8-bit RGB", "will receive images of 8 bits"]),
    ],
)
def test_differences_are_named(given, words):
    lines = differences(TWO, TWO | given)
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert word in line and "set data." in line
