"""``data.verify``: what changed without a trace is found."""

import os

import numpy as np
import pytest
from PIL import Image

from ssdistill.data.opening import open_source, open_stores
from ssdistill.settings.registry import SOURCES


@pytest.fixture(params=["stored", "original"])
def opened(request, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (12, 12), (i, 40 * i, 7)).save(folder / f"{i}.bmp")

    def open_it(**more):
        config = {"kind": "folder", "path": str(folder), "test_fraction": 0}
        settings = SOURCES.schema("folder").model_validate(
            config | {"pixels": request.param} | more
        )
        return open_stores(open_source(settings), settings, 8, tmp_path / "data")["train"]

    return folder, open_it


def test_a_file_that_changed_with_its_size_and_time_kept_is_found(opened, caplog):
    folder, open_it = opened
    before = open_it()
    old = np.array(before.images[:])
    assert open_it(verify=True).fingerprint == before.fingerprint and not caplog.records
    status = os.stat(folder / "3.bmp")
    Image.new("RGB", (12, 12), (250, 0, 0)).save(folder / "3.bmp")
    os.utime(folder / "3.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_it().fingerprint == before.fingerprint
    after = open_it(verify=True)
    assert after.fingerprint != before.fingerprint
    assert "changed, but not" in caplog.text
    assert (np.asarray(after.images[:]) != old).any((1, 2, 3)).tolist() == [
        i == 3 for i in range(6)
    ]
    caplog.clear()
    assert open_it().fingerprint == after.fingerprint and not caplog.records
    assert not [*folder.parent.glob("data/*.again*")]


def test_verifying_is_no_part_of_a_hash():
    for kind in ("folder", "tar"):
        schema = SOURCES.schema(kind)
        plain = schema.model_validate({"kind": kind, "path": "x"}).model_dump()
        verifying = schema.model_validate({"kind": kind, "path": "x", "verify": True})
        assert verifying.model_dump() == plain and "verify" not in plain
        source = open_source(verifying)
        assert "verify" not in source.settings
        assert getattr(source, "verify", True)
