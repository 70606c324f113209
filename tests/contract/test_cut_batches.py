"""Batches that are cut, with every setting of a loss that is a choice.

Micro-batches and accumulation at the defaults are among the checks of ``test_losses.py`` and
``test_methods.py``.
"""

import pytest
from own_kinds import OWN_LOSSES

from ssdistill.settings.registry import LOSSES
from ssdistill.testing.losses import accumulates_with_a_setting, variants

VARIANTS = [
    pytest.param(candidate, change, id=f"{kind}-{change}")
    for kind, candidate in OWN_LOSSES.items()
    if LOSSES[kind].accumulates
    for change in variants(candidate)
]


@pytest.mark.parametrize(("candidate", "change"), VARIANTS)
def test_no_setting_makes_a_loss_compare_images_in_silence(candidate, change):
    if not accumulates_with_a_setting(candidate, change):
        pytest.skip("these networks do not have it")
