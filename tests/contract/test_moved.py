"""Modules of version 0.1 are imported by their old names, with a notice of one line."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ssdistill
from ssdistill.moved.names import MOVED, RENAMED

KEPT = [(module, name) for module in RENAMED if module not in MOVED for name in RENAMED[module]]
"""Old names in modules that are where they were."""
RELEASED = json.loads(
    (Path(__file__).parents[1] / "golden" / "released_0_1_0" / "names.json").read_text()
)
"""By module of version 0.1.0: its public classes and functions."""
GONE = {
    "compress.fitting.calls": {"Link"},
    "compress.pruning.disjoint": {"Sets"},
    "data.folder": {"list_pictures"},
    "models.artifact_files": {"weight_names"},
    "record.axes": {"path"},
    "record.document": {
        *("caption", "card", "document", "drawn", "origin", "section", "side_by_side"),
    },
}
"""What stands for nothing today: inner parts, and pieces of pages that are templates now."""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("old", RELEASED)
def test_classes_and_functions_of_the_first_release_are_found_by_their_names(old):
    names = {*RELEASED[old]} - GONE.get(old, set())
    if not names:
        return
    module = import_module(f"ssdistill.{old}".rstrip("."))
    assert [name for name in sorted(names) if not hasattr(module, name)] == []


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_imports_the_module_of_today(old):
    sys.modules.pop(f"ssdistill.{old}", None)
    with pytest.warns(FutureWarning, match=f"ssdistill.{old} is now ssdistill.{MOVED[old]};"):
        module = import_module(f"ssdistill.{old}")
    today = import_module(f"ssdistill.{MOVED[old]}")
    public = next(name for name in (*vars(today), "__doc__") if not name.startswith("_"))
    assert getattr(module, public) is getattr(today, public)
    for name, now in RENAMED.get(old, {}).items():
        assert getattr(module, name) is present(today, name, now)
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def present(module, name, now):
    """What the table says stands for ``name``; ``module`` has what is not elsewhere."""
    elsewhere, _, now = now.rpartition(":")
    return getattr(import_module(f"ssdistill.{elsewhere}") if elsewhere else module, now or name)


@pytest.mark.parametrize(("old", "name"), KEPT)
def test_an_old_name_in_a_module_that_stayed_is_what_stands_for_it_today(old, name):
    module = import_module(f"ssdistill.{old}")
    with pytest.warns(FutureWarning, match=f"ssdistill.{old}.{name} is now ssdistill.") as caught:
        content = getattr(module, name)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert content is present(module, name, RENAMED[old][name])
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_old_names_are_attributes_of_the_package_and_of_from_imports():
    code = (
        "import ssdistill\n"
        "load = ssdistill.config.load_experiment\n"
        "from ssdistill.evaluate.gauges.collapse import gauges\n"
        "from ssdistill.registry import LOSSES\n"
        "from ssdistill.experiment import Experiment\n"
        "from ssdistill.data.sources import Npz, Source\n"
        "from ssdistill.label_free.collapse import collapse_metrics\n"
        "assert gauges is collapse_metrics and LOSSES.classes and load('quickstart')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("FutureWarning") == run.stderr.count("will go with version 1.0")


def test_an_old_command_is_run_by_its_module():
    command = [sys.executable, "-m", "ssdistill.cli", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, f"ssdistill {ssdistill.__version__}\n"), run.stderr
    assert run.stderr.count("\n") == 1 and "ssdistill.cli is now ssdistill.commands" in run.stderr


def test_names_of_today_are_not_taken_for_old_ones():
    for old in MOVED:
        assert old not in ssdistill._modules()
    with pytest.raises(ModuleNotFoundError):
        import_module("ssdistill.never_was")
    with pytest.raises(AttributeError):
        _ = ssdistill.never_was
