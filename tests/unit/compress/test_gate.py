import math

import pytest

from ssdistill.compress.gate import Gate

MEASURED = {"bytes": 0.5, "latency": 0.8, "cka": 0.9}


@pytest.mark.parametrize(
    ("gate", "named"),
    [
        ({}, []),
        ({"bytes": 0.5, "latency": 0.8, "cka": 0.9}, []),
        ({"bytes": 0.49}, ["bytes"]),
        ({"latency": 0.7}, ["latency"]),
        ({"cka": 0.95}, ["CKA"]),
        ({"bytes": 0.1, "latency": 0.1, "cka": 1.0}, ["bytes", "latency", "CKA"]),
    ],
)
def test_every_limit_that_is_missed_is_named(gate, named):
    found = Gate(**gate).complaints(MEASURED)
    assert [complaint.split()[0] for complaint in found] == named


def test_what_could_not_be_measured_does_not_pass():
    measured = dict.fromkeys(MEASURED, math.nan)
    assert len(Gate(bytes=1.0, latency=1.0, cka=0.0).complaints(measured)) == 3
