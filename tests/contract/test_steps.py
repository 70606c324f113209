"""What every registered compression step must do; a new one is tested without being named."""

from pathlib import Path

import pytest

from ssdistill import configs
from ssdistill.experiment.reading import load_experiment
from ssdistill.settings.registry import STEPS
from ssdistill.testing import Candidate
from ssdistill.testing.candidate import DESCRIBED
from ssdistill.testing.steps import (
    APPLIED,
    is_expanded_once,
    row_is_a_name,
    says_what_it_makes,
    takes_a_gate,
)

FOLDER = Path(configs.__file__).parent / "compress"
KINDS = list(STEPS.classes)
APPLICABLE = {
    "lowbit": {"images": 64},
    "lowrank": {"keep": 0.5, "images": 64, "round_to": 2},
    "prune": {"ratio": 0.5},
    "recalibrate": {},
    "recover": {"steps": 2},
    "share": {},
    "zeros": {"sparsity": 0.5},
}
"""Settings of steps that can be done to any encoder, and whose result is one of PyTorch."""


def steps_of(kind):
    """The steps of its config, each with a candidate of its class."""
    experiment, _ = load_experiment(FOLDER / f"{kind}.yaml", [])
    steps = [step for plan in experiment.compression_variants.values() for step in plan]
    return [(Candidate(STEPS, STEPS[step.kind]), step) for step in steps]


def test_every_config_is_that_of_a_step():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_a_config_that_uses_it(kind):
    assert kind in {step.kind for _, step in steps_of(kind)}


@pytest.mark.parametrize("check", [row_is_a_name, is_expanded_once, takes_a_gate])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_its_config(kind, check):
    for candidate, step in steps_of(kind):
        check(candidate, step)


@pytest.mark.parametrize("check", [*(c.run for c in DESCRIBED.values()), says_what_it_makes])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_says_what_it_is(kind, check):
    check(Candidate(STEPS, STEPS[kind]))


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("kind", APPLICABLE)
def test_what_it_makes_of_an_encoder(kind, name):
    APPLIED[name].run(Candidate(STEPS, STEPS[kind], APPLICABLE[kind]))
