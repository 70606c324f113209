"""The arithmetic of experiments/scale, on round numbers and on the committed records."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arithmetic(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "scale"))
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
    for name in ("arithmetic", "measured"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("arithmetic")


@pytest.fixture
def measured(arithmetic):
    """Round numbers: ResNet-18 has half of the operations of ResNet-50."""
    images = arithmetic.IMAGES
    return arithmetic.Measured(
        cut=300.0,
        macs={"resnet18": 2e9, "resnet50": 4e9},
        parameters={"resnet18": 10e6, "resnet50": 25e6},
        trained_here={"resnet18": 30.0, "resnet50": 10.0},
        encoded_here={"resnet18": 90.0, "resnet50": 30.0},
        cores=2,
        index_bytes=24.0,
        own_bytes=6.0,
        opening=dict.fromkeys(images, 1.0),
        fingerprint=dict.fromkeys(images, 2.0),
        indexing=1e-4,
        recorded=2.0,
        bank=1024.0,
    )


def test_a_published_rate_is_converted_by_operations(arithmetic, measured):
    pretrain, live, recorded = arithmetic.WORKS
    # Two views of a forward and two backward passes each: half of the rate with one view.
    assert arithmetic.network_rate(pretrain, 1, measured) == pytest.approx(2470 / 2)
    # 2 views x (3 x 2 + 4) GMACs against 3 x 4 GMACs of the published step.
    assert arithmetic.network_rate(live, 1, measured) == pytest.approx(2470 * 12 / 20)
    assert arithmetic.network_rate(recorded, 1, measured) == pytest.approx(2470)
    assert arithmetic.network_rate(recorded, 8, measured) == pytest.approx(16621)


def test_nodes_wait_for_each_others_gradients(arithmetic, measured):
    recorded = arithmetic.WORKS[-1]
    alone = 256 / (16621 / 8)
    averaging = 2 * 63 / 64 * 4 * 10e6 / 25e9
    expected = 64 * 256 / (alone + averaging)
    assert arithmetic.network_rate(recorded, 64, measured) == pytest.approx(expected)
    assert expected < 8 * 16621


def test_the_scarcest_part_sets_the_time(arithmetic, measured):
    rows = arithmetic.time_rows(measured)
    assert len(rows) == 2 * 3 * 3
    row = next(
        r for r in rows if r["devices"] == 8 and r["training"] == "the same, recorded outputs"
    )
    assert row["decoding, images/s"] == 8 * 16 * 300 and row["networks, images/s"] == 16621
    assert row["storage, images/s"] == round(1.25e9 / 115_440) and row["limit"] == "storage"
    assert row["hours per pass"] == pytest.approx(1_281_167 / (1.25e9 / 115_440) / 3600)
    assert row["days for 100 passes"] == pytest.approx(100 * row["hours per pass"] / 24)
    assert row["cores that keep up"] == round(16621 / 300)
    larger = [r for r in rows if r["images"] == "100,000,000"]
    assert all(
        b["hours per pass"] > 70 * a["hours per pass"] for a, b in zip(rows, larger, strict=False)
    )


def test_what_grows_with_the_images_fits_or_does_not(arithmetic, measured):
    rows = {row["what"]: row for row in arithmetic.size_rows(measured)}
    banks = rows["memory banks of crd (device)"]
    assert banks["100,000,000 images, GB"] == pytest.approx(102.4) and banks["limit, GB"] == 80
    assert banks["fits up to, M images"] == pytest.approx(78.125)
    recorded = rows["the same for four passes"]
    assert recorded["1,281,167 images, GB"] == pytest.approx(4 * 2 * 512 * 2 * 1_281_167 / 1e9)
    first, _ = arithmetic.start_rows(measured)
    assert first["first start: listing and headers, hours"] == pytest.approx(128.1167 / 3600)
    here = arithmetic.here_rows(measured)
    assert here[1]["networks, images/s"] == pytest.approx(1 / (2 * (1 / 30 + 1 / 30)))
    limits = arithmetic.first_to_break(measured)
    assert limits[0]["decoding reaches of one device"] == "100%"
    assert limits[0]["cores per device that keep up"] == pytest.approx(1235 / 300)


def test_every_assumption_names_its_source(arithmetic):
    assert all(len(a.source) > 10 and a.unit for a in arithmetic.ASSUMPTIONS.values())


def test_the_committed_tables_follow_from_the_committed_rates(arithmetic):
    committed = sys.modules["measured"].latest("scale")
    measured = arithmetic.read_measured()
    makers = {"time": arithmetic.time_rows, "sizes": arithmetic.size_rows}
    for name, make in makers.items():
        rows = json.loads(json.dumps(make(measured)))
        assert committed[name]["rows"] == rows, (
            "rates have changed: run experiments/scale/arithmetic.py"
        )


def test_a_missing_record_is_named(arithmetic, tmp_path):
    with pytest.raises(SystemExit, match="a record is missing"):
        arithmetic.read_measured(tmp_path)
