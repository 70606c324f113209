"""What a type checker and an editor see of the public names and of the settings."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from pydantic import ValidationError

import ssdistill
from ssdistill.experiment.schema import Experiment
from ssdistill.settings.registry import METHODS, SOURCES

ROOT = Path(__file__).resolve().parents[2]
RIGHT, WRONG = (Path(__file__).with_name(f"typed_{name}.py") for name in ("right", "wrong"))


@pytest.fixture(scope="module")
def reported():
    """Line and rule of everything that the type checker says, by the file's name."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = subprocess.run(
        [*command, "--pythonpath", sys.executable, RIGHT, WRONG],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    found = {RIGHT.name: set(), WRONG.name: set()}
    for problem in json.loads(done.stdout)["generalDiagnostics"]:
        line = problem["range"]["start"]["line"] + 1
        found[Path(problem["file"]).name].add((line, problem.get("rule")))
    return found


def test_right_uses_of_public_names_pass(reported):
    assert reported[RIGHT.name] == set()


def test_wrong_uses_of_public_names_are_reported(reported):
    lines = enumerate(WRONG.read_text().splitlines(), start=1)
    marked = {(n, rule[1]) for n, line in lines if (rule := re.search(r"# (report\w+)$", line))}
    assert len(marked) > 10
    assert reported[WRONG.name] == marked


def test_editors_are_shown_the_settings_that_there_are():
    spec = importlib.util.spec_from_file_location("stubs", ROOT / ".ci" / "stubs.py")
    stubs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stubs)
    assert stubs.outdated() == [], "run make stubs"


def test_settings_are_frozen_when_they_are_used_too():
    method = METHODS.schema("simclr")(steps=1)
    made = Experiment(schema=1, name="digits", data=SOURCES.schema("digits")(), pretrain=method)
    with pytest.raises(ValidationError, match="frozen"):
        made.seeds = (1,)
    assert made.model_dump(by_alias=True)["schema"] == made.model_dump()["schema_version"] == 1


def test_every_room_is_shown_to_a_checker():
    text = Path(ssdistill.__file__).read_text()
    shown = re.findall(r"^    from ssdistill import (\w+) as \1$", text, re.MULTILINE)
    # Rooms that are functions, too, are shown as these.
    aside = {"configs", "moved", *ssdistill.CALLED}
    assert shown == [name for name in ssdistill._modules() if name not in aside]


def test_the_package_says_that_it_has_types():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    data = setup["options.package_data"]
    assert "py.typed" in data["ssdistill"].split()
    assert (ROOT / "ssdistill" / "py.typed").read_text() == ""


def test_every_file_of_the_package_is_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert settings["include"] == ["ssdistill"]
    assert settings["exclude"] == ["**/configs", "**/__pycache__"]
    assert "ignore" not in settings
    loosened = {key for key, value in settings.items() if value in (False, "none")}
    assert loosened == {"reportMissingModuleSource", "reportPrivateImportUsage"}
