"""What import-linter cannot see of the rooms: labels read as attributes, imports by a string."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ssdistill"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
BY_STRING = {
    *("__init__.py", "moved/__init__.py", "settings/registry.py"),
    *("settings/plugins.py", "losses/__init__.py"),
    *("artifacts/runtimes/__init__.py", "commands/data/group.py"),
}
"""Public names, old names, new kinds that are found by themselves, those of plug-ins, losses as
functions, libraries of runtimes, and subcommands that are found by themselves."""
GETTERS = {"getattr", "attrgetter", "methodcaller"}
LABELS = re.compile(r"labels|_load_labels|labels?_(of|[A-Z]+)")
"""Names under which labels are reached: of a split or a set of images, or chosen from them."""
HAND_ON = {
    *("array_names.py", "array_rows.py", "array_split.py", "file_split.py", "frames.py"),
    *("image_set.py", "list_layout.py", "list_split.py", "opening.py", "record_split.py"),
    *("named_images.py", "python_data.py", "shards/labels.py", "shards/split.py"),
    *("table_split.py", "sources/hdf5.py", "sources/npz.py", "sources/torchvision_sets.py"),
}
"""Files of `data` that reach labels: sources and splits that hand them on, and the bytes that the
packer copies. What makes views and batches of images is not among them."""

CHECKS_OF_LABELS = {f"testing/{name}.py" for name in ("protocols", "protocol_traps", "sources")}
"""Checks for tests of plug-ins; on the top floor, where no room can import them."""


def readings_of_labels(source: str) -> list[int]:
    """Lines that read labels by an attribute, also by its name in a string."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        names = [getattr(node, "attr", "")]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("packing"):
            continue  # whether labels are to be packed
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in GETTERS:
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if any(LABELS.fullmatch(str(name)) for name in names):
            lines.append(node.lineno)
    return lines


def imports_by_a_string(source: str) -> list[int]:
    """Lines that import by a string, or take the whole package, which has every room."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        whole = isinstance(node, ast.Import) and any(a.name == "ssdistill" for a in node.names)
        if whole or name in ("import_module", "__import__"):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", MODULES)
def test_labels_are_read_in_evaluate_alone(module):
    if module.startswith(("evaluate/", "data/")):
        return  # data has them for whoever asks
    if module in CHECKS_OF_LABELS:
        return
    assert not readings_of_labels(MODULES[module].read_text(encoding="utf-8"))


def test_of_data_only_what_hands_labels_on_reaches_them():
    reaching = {
        name.removeprefix("data/")
        for name, path in MODULES.items()
        if name.startswith("data/") and readings_of_labels(path.read_text(encoding="utf-8"))
    }
    assert reaching == HAND_ON


@pytest.mark.parametrize("module", sorted(MODULES.keys() - BY_STRING))
def test_no_room_is_reached_by_a_string(module):
    assert not imports_by_a_string(MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "store.labels()",
        "getattr(s, 'labels', 0)",
        "s._load_labels()",
        "s.labels_of(rows)",
        "s.labels_N",
    ],
)
def test_a_reading_of_labels_is_noticed(line):
    assert readings_of_labels(f"def f(s):\n    return {line}\n") == [2]


@pytest.mark.parametrize(
    "line",
    [
        "import ssdistill",
        "importlib.import_module(name)",
        "import_module(name)",
        "__import__(name)",
    ],
)
def test_an_import_by_a_string_is_noticed(line):
    assert imports_by_a_string(f"def f(name):\n    {line}\n") == [2]
