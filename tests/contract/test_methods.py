"""What every registered pretraining method must do; a new one is tested without being named."""

import pytest
from own_kinds import OWN_METHODS, every_case

from ssdistill.settings.registry import METHODS
from ssdistill.testing.methods import IN_ONE_PROCESS

ELSEWHERE = {"float16", "float16_of_large_features"}
"""Checks that ``test_float16.py`` makes."""
CHECKS = {name: check for name, check in IN_ONE_PROCESS.items() if name not in ELSEWHERE}


@every_case(CHECKS, OWN_METHODS)
def test_a_method(check, candidate):
    check.run(candidate)


@pytest.mark.parametrize("kind", OWN_METHODS)
def test_a_method_of_this_package_cites_a_paper(kind):
    assert "arXiv:" in METHODS[kind].paper or "doi:" in METHODS[kind].paper
