"""Losses on two processes with half a batch each equal those on one with the whole batch."""

import pytest
from own_kinds import OWN_LOSSES, every_case

from ssdistill.testing.sharding import LOSSES_IN_TWO_PROCESSES, train_loss, train_together


@pytest.fixture(scope="module", autouse=True)
def together():
    """All of them in the same two processes, once."""
    train_together(train_loss, list(OWN_LOSSES.values()))


@every_case(LOSSES_IN_TWO_PROCESSES, OWN_LOSSES)
def test_a_loss(check, candidate):
    check.run(candidate)
