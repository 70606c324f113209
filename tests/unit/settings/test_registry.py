import re
import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

import ssdistill
from ssdistill.errors import UserError
from ssdistill.settings.registry import LOSSES, METHODS, SOURCES, STEPS, Registry

ROOM = """
class Animal:
    def __init__(self, size):
        self.size = size
"""
CAT = """
from ROOM import Animal
from ssdistill.settings import Positive

class Cat(Animal):
    \"\"\"Purrs.\"\"\"
    kind = "cat"

    def __init__(self, size, extra=None, *, lives: int, weight: Positive = 4.5):
        super().__init__(size)
        self.lives, self.weight = lives, weight
"""
DOG = """
from ROOM import Animal
from ROOM.cat import Cat

class Pack(Animal):
    pass

class Dog(Pack):
    kind = "dog"
"""


@pytest.fixture
def make_registry(tmp_path, monkeypatch):
    """A registry over a package written for the test."""
    name = f"room_{tmp_path.name}"

    def make(**modules):
        folder = tmp_path / name
        folder.mkdir()
        for module, code in {"__init__": ROOM, **modules}.items():
            text = textwrap.dedent(code).replace("ROOM", name)
            (folder / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return Registry("animal", name, f"{name}:Animal")

    return make


def test_every_module_is_searched_and_classes_without_their_own_kind_are_left_out(make_registry):
    registry = make_registry(dog=DOG, cat=CAT)
    assert list(registry.classes) == ["cat", "dog"]


def test_keyword_only_arguments_become_the_schema(make_registry):
    schema = make_registry(cat=CAT).schema("cat")
    assert list(schema.model_fields) == ["kind", "lives", "weight"]
    settings = schema(lives=9)
    assert (settings.kind, settings.lives, settings.weight) == ("cat", 9, 4.5)
    assert schema.__doc__ == "Purrs."


@pytest.mark.parametrize("wrong", [{}, {"lives": 1, "weight": 0}, {"lives": 1, "size": 3}])
def test_a_schema_refuses_missing_wrong_and_runtime_arguments(make_registry, wrong):
    with pytest.raises(ValidationError):
        make_registry(cat=CAT).schema("cat")(**wrong)


def test_settings_are_frozen(make_registry):
    settings = make_registry(cat=CAT).schema("cat")(lives=9)
    with pytest.raises(ValidationError):
        settings.lives = 1


def test_build_passes_runtime_objects_before_the_settings(make_registry):
    registry = make_registry(cat=CAT)
    big = object()
    cat = registry.build(registry.schema("cat")(lives=7, weight=2), big)
    assert (cat.size, cat.lives, cat.weight) == (big, 7, 2.0)
    named = registry.build(registry.schema("cat")(lives=1), size=big)
    assert named.size is big


def test_settings_shared_by_a_family_stay_out_of_the_constructor():
    settings = LOSSES.schema("simreg")(weight=3.0, depth=2)
    shapes = ssdistill.losses.Shapes(student_dim=4, teacher_dim=5, num_samples=9)
    loss = LOSSES.build(settings, shapes)
    assert loss.shapes is shapes
    assert "weight" in LOSSES.schema("simreg").model_fields


def test_two_classes_of_one_kind_are_refused(make_registry):
    registry = make_registry(cat=CAT, dog=DOG.replace('"dog"', '"cat"'))
    with pytest.raises(TypeError, match="two animal classes have the kind 'cat'"):
        _ = registry.classes


def test_an_unknown_kind_names_the_nearest_and_all(make_registry):
    registry = make_registry(cat=CAT, dog=DOG)
    with pytest.raises(UserError) as caught:
        registry["cta"]
    assert str(caught.value) == "unknown animal 'cta' (did you mean 'cat'?); known: cat, dog"
    with pytest.raises(UserError, match="unknown animal 'cta'"):
        registry.schema("cta")


@pytest.mark.parametrize(
    "registry, files",
    [
        (LOSSES, "losses/*.py"),
        (METHODS, "pretrain/*.py"),
        (STEPS, "compress/*.py"),
        (SOURCES, "data/sources/*.py"),
    ],
    ids=lambda value: getattr(value, "noun", ""),
)
def test_every_kind_written_in_the_package_is_found(registry, files):
    package = Path(ssdistill.__file__).parent
    sources = [path.read_text() for path in package.glob(files)]
    written = {kind for text in sources for kind in re.findall(r'^    kind = "(\w+)"', text, re.M)}
    assert written
    assert set(registry.classes) == written


@pytest.mark.parametrize("registry", [LOSSES, METHODS, STEPS, SOURCES], ids=lambda r: r.noun)
def test_every_kind_has_a_summary_and_a_schema_that_names_it(registry):
    for kind, cls in registry.classes.items():
        assert cls.__doc__, kind
        assert registry.schema(kind).model_fields["kind"].default == kind
