"""What every registered loss must do; a new one is tested without being named."""

import re

import pytest
from own_kinds import OWN_LOSSES, every_case

from ssdistill.settings.registry import LOSSES
from ssdistill.testing.distillations import ARCHITECTURES, IN_DISTILLATIONS, refusal
from ssdistill.testing.losses import ON_OUTPUTS

FAMILIES = {
    "similarity distribution",
    "contrastive",
    "feature matching",
    "relational",
    "attention and intermediate",
    "prototype and logit",
}
REFUSED = {
    "attndistill": {"cnn_cnn", "vit_cnn", "cnn_vit"},
    "ab": {"vit_cnn", "cnn_vit", "vit_vit"},
    "proteus": {"cnn_cnn", "cnn_vit"},
    "ofd": {"vit_cnn", "cnn_vit", "vit_vit"},
}
"""Architectures that do not have what a loss reads: attention, a ReLU at the end of a stage,
patches that can be masked."""
IN_PARTS = {"accumulates_with_any_setting"}
"""Checks that ``test_cut_batches.py`` makes of one setting after the other."""
CHECKS = {n: check for n, check in (ON_OUTPUTS | IN_DISTILLATIONS).items() if n not in IN_PARTS}


@every_case(CHECKS, OWN_LOSSES)
def test_a_loss(check, candidate):
    check.run(candidate)


@pytest.mark.parametrize("kind", OWN_LOSSES)
def test_a_loss_of_this_package_cites_a_paper_and_is_of_a_known_family(kind):
    cls = LOSSES[kind]
    assert re.search(r"arXiv:\d{4}\.\d{5}|arXiv:\d{4}\.\d{4}\b", cls.paper)
    assert cls.family in FAMILIES


@pytest.mark.parametrize("architectures", ARCHITECTURES)
@pytest.mark.parametrize("kind", OWN_LOSSES)
def test_only_networks_that_lack_what_a_loss_reads_are_refused(kind, architectures):
    refused = refusal(OWN_LOSSES[kind], architectures) is not None
    assert refused == (architectures in REFUSED.get(kind, ()))
