"""What every registered compression step must do; a new one is tested without being named."""

import re
from pathlib import Path

import pytest

from ssdistill import configs
from ssdistill.compress import StepSettings
from ssdistill.experiment.reading import load_experiment
from ssdistill.settings.registry import STEPS

FOLDER = Path(configs.__file__).parent / "compress"
KINDS = list(STEPS.classes)
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def steps_of(kind):
    experiment, _ = load_experiment(FOLDER / f"{kind}.yaml", [])
    return [step for plan in experiment.compression_variants.values() for step in plan]


def test_every_config_is_that_of_a_step():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_a_config_that_uses_it(kind):
    assert kind in {step.kind for step in steps_of(kind)}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_tables_have_names_that_metrics_can_have(kind):
    for step in steps_of(kind):
        row = STEPS[step.kind].row(step)
        assert re.match(NAME, row) and row.startswith(STEPS[step.kind].makes)
        # What the chain calls its own models is told by what stands before the underscore.
        assert "_" not in STEPS[step.kind].makes


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_done_in_stages_of_known_steps(kind):
    for step in steps_of(kind):
        stages = STEPS[step.kind].expand(step)
        assert stages and all(isinstance(stage, StepSettings) for stage in stages)
        # A stage is expanded once: what it is expanded to is done as it is.
        assert all(STEPS[s.kind].expand(s) == [s] for s in stages)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_says_what_it_is_and_where_it_comes_from(kind):
    step = STEPS[kind]
    assert step.__doc__ and step.paper and step.makes
    assert step.apply.__doc__ and "Raises:" in step.apply.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_can_be_set_on_every_step(kind):
    gate = {"bytes": 1.0, "otherwise": "keep"}
    for step in [stage for s in steps_of(kind) for stage in STEPS[s.kind].expand(s)]:
        settings = type(step).model_validate({**step.model_dump(), "gate": gate})
        assert settings.gate.otherwise == "keep"
        assert STEPS.build(settings)
