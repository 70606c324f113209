"""Every loss against values computed by its authors' code (sources: losses.json, frontier.json)."""

import importlib
from pathlib import Path

import pytest
import torch
from reference import AUTOCAST, CASES, LEFT_OUT, MANIFEST, NUMBERS, number

TOLERANCE = 2e-6
"""Of the largest absolute reference value: gradients here go down to 1e-5."""

for file in sorted(Path(__file__).parent.glob("cases_*.py")):
    importlib.import_module(file.stem)


def expected_names(case: str) -> set[str]:
    lead = f"{case}/out/"
    return {name.removeprefix(lead) for name in NUMBERS if name.startswith(lead)}


def relative_errors(case: str) -> dict[str, float]:
    """Largest difference of every output, relative to the largest absolute reference value."""
    errors = {}
    for name, ours in CASES[case]():
        reference = number(f"{case}/out/{name}").double()
        assert name not in errors, f"{name} is given twice"
        ours = ours.detach().double().reshape(reference.shape)
        scale = max(float(reference.abs().max()), 1e-30)
        errors[name] = float((ours - reference).abs().max()) / scale
    return errors


def assert_golden(case: str) -> None:
    errors = relative_errors(case)
    assert set(errors) | set(LEFT_OUT[case]) == expected_names(case)
    assert not set(errors) & set(LEFT_OUT[case])
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("case", MANIFEST)
def test_golden(case):
    assert case in CASES, "nothing is compared with this case"
    assert_golden(case)


@pytest.mark.parametrize("case", AUTOCAST)
def test_golden_under_autocast(case):
    with torch.autocast("cpu", torch.bfloat16):
        assert_golden(case)


def test_every_stored_number_belongs_to_a_case_of_the_manifest():
    assert {name.split("/")[0] for name in NUMBERS} == set(MANIFEST)
    assert set(CASES) <= set(MANIFEST)
