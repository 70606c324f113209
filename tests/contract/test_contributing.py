"""CONTRIBUTING.md, setup.cfg, the Makefile and the folders tell the same of the rooms."""

import ast
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ssdistill"
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
ROOMS = {
    path.stem
    for path in PACKAGE.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
} - {"__init__", "__main__", "configs"}
FOLDERS = sorted(p.parent for p in PACKAGE.rglob("__init__.py") if "configs" not in p.parts)
MODULES = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in FOLDERS}
ELSEWHERE = r"nothing else|\bbelongs?\b|that know|stays in its|not theirs|\n\nNo |constructor of"
WITH_LABELS = {"evaluate", "data"}


def test_the_table_has_the_floors_that_import_linter_holds():
    rows = re.findall(r"^\| *\d+ \| (.+?) \|", PAGE, re.MULTILINE)[1:]  # below the public names
    table = [{Path(name).stem for name in re.findall(r"`([\w./]+)`", row)} for row in rows]
    layers = SETUP["importlinter:contract:floors"]["layers"].split("\n")
    floors = [set(re.split(r"[|\s]+", layer.strip())) for layer in layers if layer.strip()]
    assert [floor - {"moved"} for floor in floors] == table
    assert set().union(*floors) == ROOMS


def test_import_linter_keeps_labels_out_of_every_other_room():
    named = SETUP["importlinter:contract:labels"]["source_modules"].split()
    assert {name.removeprefix("ssdistill.") for name in named} == ROOMS - WITH_LABELS


def test_every_path_that_the_page_names_is_there():
    names = {n for n in re.findall(r"`([\w./<>*]+)`", PAGE) if "/" in n.rstrip("/")}
    paths = {re.sub(r"<\w+>", "*", name).rstrip("/") for name in names}
    assert len(paths) > 40
    places = (ROOT, PACKAGE, ROOT / "tests/contract")
    assert sorted(p for p in paths if not any(list(place.glob(p)) for place in places)) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_says_what_belongs_in_it_and_what_does_not(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text and re.match(r"[^\n]+\.(\s|$)", text)
    if folder != PACKAGE:
        named = set(re.findall(r"`([\w.]+)`", text.split(".", 1)[1]))
        assert re.search(ELSEWHERE, text) or {name.split(".")[0] for name in named} & MODULES


def test_unit_tests_lie_in_folders_called_like_rooms():
    folders = {p.name for p in (ROOT / "tests/unit").iterdir() if list(p.glob("test_*.py"))}
    assert len(folders) > 15 and folders <= ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_unit_tests_import_from_the_room_they_lie_in(room):
    others = []
    for path in (ROOT / "tests/unit" / room).glob("test_*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {
            f"{node.module}.{alias.name}"
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        } | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        if not any(f"{name}.".startswith(f"ssdistill.{room}.") for name in names):
            others.append(path.name)
    assert others == []


def test_continuous_integration_runs_everything_and_the_lowest_versions():
    script = (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("lint", "types", "test", "smoke"):
        assert f"\nmake {target}\n" in script and re.search(rf"^{target}: ", makefile, re.M)
    assert "lint-imports" in makefile and "-m smoke" in makefile
    assert re.search(r"^test: .*\n\t@\S+ -m pytest -n 3 [^/]*$", makefile, re.M)
