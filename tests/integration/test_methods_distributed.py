"""Pretraining on two processes with half a batch each equals one with the whole batch.

Without batch norm, which ``test_shared_training.py`` has.
"""

import pytest
from own_kinds import METHOD_SETTINGS, every_case

from ssdistill.settings.registry import METHODS
from ssdistill.testing import Candidate
from ssdistill.testing.sharding import METHODS_IN_TWO_PROCESSES, train_method, train_together

PLAIN = {"hidden_dim": 16, "batch_norm": "none"}
WITHOUT = {"projector": {**PLAIN, "output_dim": 8}, "predictor": PLAIN}
DEFAULTS = {"moco": {"bn_splits"}, "swav": {"queue"}}
"""What remains at its default: it goes with batch norm, or is longer than the batch."""


def settings_for(kind):
    known = METHOD_SETTINGS.get(kind, {})
    found = {**known, **{name: value for name, value in WITHOUT.items() if name in known}}
    return {name: found[name] for name in found if name not in DEFAULTS.get(kind, ())}


CANDIDATES = {
    kind: Candidate(METHODS, cls, settings_for(kind)) for kind, cls in METHODS.classes.items()
}


@pytest.fixture(scope="module", autouse=True)
def together():
    """All of them in the same two processes, once."""
    train_together(train_method, list(CANDIDATES.values()))


@every_case(METHODS_IN_TWO_PROCESSES, CANDIDATES)
def test_a_method(check, candidate):
    check.run(candidate)
