"""Fixtures that all contract tests of protocols share."""

import pytest
from tiny_subjects import build, subject


@pytest.fixture(scope="session")
def found():
    """``found(kind)``: its result on the tiny images, made once."""
    known = {}

    def get(kind):
        if kind not in known:
            known[kind] = build(kind).run(subject())
        return known[kind]

    return get
