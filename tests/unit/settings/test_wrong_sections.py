"""Values of another type than a section's, at every section of the schema."""

import re
from functools import cache
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import BaseModel

from ssdistill.artifacts.description import read_description
from ssdistill.compress.schedule import between_rounds
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.supervised import plain_recipe
from ssdistill.experiment.reading import load_experiment
from ssdistill.experiment.schema import Experiment
from ssdistill.record.run_record import load_run
from ssdistill.settings.places import is_model, item_types, kind_of, members, names
from ssdistill.settings.problems import of_file
from ssdistill.settings.registry import STEPS

WRONG = ([], [[]], 3, "x", True, None)
DEEPEST = 6


def sections(annotation, path=()):
    """(path, annotation) of every mapping, and list of mappings, that a config may hold.

    A path's parts are keys; a mapping of several kinds has the part ``{"kind": …}`` before its
    first key.
    """
    types = members(annotation)
    models = [part for part in types if is_model(part)]
    holds = [item for part in types for item in item_types(part)]
    if path and (models or any(is_model(m) for item in holds for m in members(item))):
        yield path, annotation
    if len(path) >= DEEPEST:
        return
    for model in models:
        kind = ({"kind": kind_of(model)},) if kind_of(model) and len(models) > 1 else ()
        for name, field in names(model).items():
            if name != "kind":
                yield from sections(field.annotation, (*path, *kind, name))
    for part in types:
        key = "a" if get_origin(part) is dict else 0
        for item in item_types(part):
            yield from sections(item, (*path, key))


def tree_of(path, value):
    """A config that holds ``value`` at ``path``, and no more than what leads there."""
    for part in reversed(path):
        if isinstance(part, dict):
            value = {**part, **value}
        else:
            value = [value] if part == 0 else {part: value}
    return value


@cache
def classes():
    """Names of all classes of settings."""
    found, left = set(), [BaseModel]
    while left:
        for cls in left.pop().__subclasses__():
            found.add(cls.__name__)
            left.append(cls)
    return found


def wording_of(tree, path):
    """The line on the last key of ``path``; None if there is nothing wrong with it."""
    key = ".".join(str(part) for part in path if not isinstance(part, dict))
    try:
        of_file(Path("f.yaml"), tree, Experiment)
    except UserError as error:
        lines = str(error).splitlines()
        for name in classes():
            assert not re.search(rf"\b{name}\b", str(error)), error
        return next((line.strip() for line in lines if line.startswith(f"  {key}: ")), None)
    return None


PLACES = {repr(path): (path, annotation) for path, annotation in sections(Experiment)}


def test_the_schema_has_sections():
    tops = {path[0] for path, _ in PLACES.values()}
    assert {"data", "teacher", "student", "pretrain", "distill", "evaluate", "compress"} <= tops
    assert len(PLACES) > 200


@pytest.mark.parametrize("top", sorted({path[0] for path, _ in PLACES.values()}))
def test_a_value_that_is_no_section_is_told_what_may_stand_there(top):
    told = 0
    for path, annotation in PLACES.values():
        if path[0] != top:
            continue
        may_be_null = type(None) in members(annotation)
        for value in WRONG:
            line = wording_of(tree_of(path, value), path)
            if line is None:
                continue
            if ": expected" in line:
                told += 1
                assert ("or null" in line) == may_be_null, line
                assert re.search("a mapping|a list, such as|a list of at least", line), line
                shown = "null" if value is None else "true" if value is True else repr(value)
                assert f"(got {shown}" in line, line
            if may_be_null:
                assert value is not None, line
    assert told


def test_a_list_in_place_of_a_section_is_refused_by_key_and_remedy():
    with pytest.raises(UserError) as refusal:
        load_experiment("quickstart", ["evaluate=[]"])
    assert "evaluate: expected a mapping of settings, or null to leave it out (got [])" in (
        str(refusal.value)
    )


@pytest.mark.parametrize(
    "tree, text",
    [
        ({"pretrain": 3}, "pretrain: expected a mapping with a kind, such as {kind: "),
        ({"data": {"root": "x"}}, "data.kind: required; known: arrow, "),
        ({"compare": []}, "compare: expected a mapping of names to values (got [])"),
        ({"seeds": {"a": 1}}, "seeds: expected a list, such as [a, b] (got a mapping)"),
        ({"compress": None}, "compress: expected a list, such as [a, b] (got null)"),
        ({"paper": {"claims": [3]}}, "paper.claims.0: expected a mapping of settings (got"),
        ({"distill": {"views": 3, "losses": {}}}, "distill.views: expected a list, such as "
                                                  "[a, b], or null (got 3)"),
        ({"distill": {"views": [{"scale": [0.2]}], "losses": {}}}, "distill.views.0.scale: "
                                                     "expected a list of 2 values (got [0.2])"),
        ({"distill": {"views": [{"scale": [1, 1, 1]}], "losses": {}}}, "distill.views.0.scale: "
                                                     "expected a list of 2 values (got [1"),
        ({"distill": {"losses": {}}}, "losses: expected a mapping of at least 1 item"),
    ],
)  # fmt: skip
def test_what_may_stand_there_is_said_in_the_words_of_yaml(tree, text):
    with pytest.raises(UserError) as refusal:
        of_file(Path("f.yaml"), tree, Experiment)
    assert text in str(refusal.value)


def test_a_mapping_at_fault_for_what_is_in_it_is_not_shown():
    with pytest.raises(
        UserError, match=r"pretrain: .*and epochs \(steps=1 and epochs=1 are set\)$"
    ):
        load_experiment("quickstart", ["pretrain={kind: simclr, epochs: 1, steps: 1}"])


def test_other_readers_name_no_class_either(tmp_path):
    prune = STEPS.schema("prune")(ratio=0.5, rounds=2, recover={"optim": 3})
    (tmp_path / "model.json").write_text(
        '{"format": 1, "sha256": "%s", "embed_dim": 1, "spec": 3}' % ("0" * 64)
    )
    (tmp_path / "run.json").write_text(
        '{"schema": 2, "stage": "a", "digest": "b", "seed": 0, "provenance": 3}'
    )
    for attempt in (
        lambda: plain_recipe(3),
        lambda: between_rounds(prune),
        lambda: read_description(tmp_path),
        lambda: load_run(tmp_path),
    ):
        with pytest.raises(UserError) as refusal:
            attempt()
        assert "expected a mapping" in str(refusal.value)
