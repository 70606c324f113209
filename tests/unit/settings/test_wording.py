"""Every problem that pydantic can find in a config, said in the words of one who writes YAML."""

import re
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import ValidationError

from ssdistill.artifacts.description import Description, Parent
from ssdistill.compress.schedule import between_rounds
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.supervised import plain_recipe
from ssdistill.experiment.reading import load_experiment
from ssdistill.experiment.schema import Experiment
from ssdistill.settings.places import is_model, item_types, kind_of, members, names
from ssdistill.settings.problems import describe
from ssdistill.settings.registry import STEPS
from ssdistill.settings.wording import FORMS

WRONG = (
    *(-1, 0, 2, 1.5, 1e30, "nan", "9" * 5000, "x", "a b", "x" * 200, True, None),
    *([], [1], [[1]], list(range(200)), {}, {"a": 1}, {"a": {}}, {"kind": "x"}),
)
FOREIGN = re.compile(
    r"[Ii]nput should|valid (string|integer|number|boolean|tuple|list|dict)|pattern|parse"
    r"|validation|[Tt]uple|[Dd]iction|[Ss]tring should|not permitted|Field required|discriminator"
)
"""Words of pydantic's."""
KNOWN = {
    *("missing", "extra_forbidden", "union_tag_invalid", "union_tag_not_found", "value_error"),
    *("int_type", "int_parsing", "int_parsing_size", "int_from_float", "float_type"),
    *("float_parsing", "finite_number", "bool_type", "bool_parsing", "string_type"),
    *("string_too_long", "string_pattern_mismatch", "literal_error", "none_required"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("too_short", "too_long", "tuple_type", "list_type", "dict_type", "model_type"),
    "model_attributes_type",
}
"""Types of all problems that settings can have."""


def settings(annotation, path=(), kind=()):
    """(path, annotation) of every setting, each sort of setting once."""
    types = members(annotation)
    if path:
        yield path, annotation
    for model in (part for part in types if is_model(part)):
        own = ({"kind": kind_of(model)},) if kind_of(model) and len(types) > 1 else ()
        for name, field in names(model).items():
            yield from settings(field.annotation, (*path, *own, name), own)
    for part in types:
        key = "a" if get_origin(part) is dict else 0
        for item in item_types(part):
            yield from settings(item, (*path, key), kind)


def tree_of(path, value):
    for part in reversed(path):
        if isinstance(part, dict):
            value = {**part, **value}
        else:
            value = [value] if part == 0 else {part: value}
    return value


def one_place_each():
    """One place for each type; sections that repeat others have none of their own."""
    found = {}
    for path, annotation in settings(Experiment):
        if path[0] in ("compare", "plans", "teachers") and len(path) > 3:
            continue
        found.setdefault(repr(annotation), path)
    return list(found.values())


@pytest.fixture(scope="module")
def problems():
    """Types of problems, and the lines on them."""
    types, lines = set(), set()
    for path in one_place_each():
        for value in WRONG:
            try:
                Experiment.model_validate(tree_of(path, value))
            except ValidationError as error:
                types |= {problem["type"] for problem in error.errors(include_url=False)}
                lines.update(describe(Path("f.yaml"), error, Experiment).splitlines()[1:])
    return types, lines


def test_what_settings_refuse_is_all_known(problems):
    assert problems[0] == KNOWN


def test_no_word_of_pydantics_is_left(problems):
    assert not [line for line in problems[1] if FOREIGN.search(line.partition(": ")[2])]


def test_no_line_says_a_word_twice(problems):
    for line in problems[1]:
        key, _, reason = line.strip().partition(": ")
        assert not reason.startswith(f"{key}:"), line
        assert not re.search(r"\b([a-z]{3,}) \1\b", reason), line


def test_every_pattern_is_said_in_words():
    patterns = set()

    def collect(tree):
        if isinstance(tree, dict):
            if isinstance(tree.get("pattern"), str):
                patterns.add(tree["pattern"])
            tree = list(tree.values())
        if isinstance(tree, list):
            for part in tree:
                collect(part)

    for model in (Description, Parent):
        collect(model.model_json_schema())
    for _, annotation in settings(Experiment):
        if str in members(annotation) or "pattern" in repr(annotation):
            patterns |= set(re.findall(r"pattern='([^']*)'", repr(annotation)))
    assert {pattern.replace("\\\\", "\\") for pattern in patterns} <= set(FORMS)
    assert "^[0-9a-f]{64}$" in patterns


@pytest.mark.parametrize(
    "override, line",
    [
        ("pretrain.steps=1.5", "pretrain.steps: expected a whole number, or null (got 1.5)"),
        ("pretrain.optim.lr=-1", "pretrain.optim.lr: expected a number above 0 (got -1)"),
        ("data.max_bad=2", "data.max_bad: expected a number of at most 1 (got 2)"),
        ("data.max_bad=nan", "data.max_bad: expected a finite number (got 'nan')"),
        ("seeds=[-1]", "seeds.0: expected a number of at least 0 (got -1)"),
        ("compress=[{kind: prune, ratio: 2}]", "compress.0.ratio: expected a number below 1, "
                                              "or null (got 2)"),
        ("data.verify=perhaps", "data.verify: expected true or false (got 'perhaps')"),
        ("data.resize=cropp", "data.resize: expected 'crop', 'squash' or 'pad' (got 'cropp'; did "
                              "you mean 'crop'?)"),
        ("teachers={a.b: {}}", "teachers.a.b: expected letters, digits, '_' and '-', first a "
                               "letter or digit (got 'a.b')"),
        ("compress=[{kind: zeros, pattern: [1,2,3]}]", "compress.0.pattern: expected a list of at "
                                                      "most 2 items, or null (got [1, 2, 3])"),
        ("name=CON", "name: 'CON' cannot name a folder on every system; choose another name"),
        # What the members of a union find wrong is one problem.
        ("distill.losses.feature.pairs=x", "distill.losses.feature.pairs: expected 'same' or "
                                "'other', or a list, such as [a, b], or null (got 'x')"),
        ("distill.losses.feature.pairs=[[-1, 0]]", "distill.losses.feature.pairs.0.0: expected a "
                                "number of at least 0 (got -1)"),
        ("evaluate.transfer.datasets=[{kind: parquet, path: 3}]", "evaluate.transfer.datasets.0."
            "path: expected text, or a list, such as [a, b] (got 3; text that YAML reads otherwise "
            "needs quotes, in a shell '\"…\"')"),
    ],
)  # fmt: skip
def test_a_problem_says_what_is_expected_and_what_was_found(override, line):
    with pytest.raises(UserError) as refusal:
        load_experiment("quickstart", [override])
    assert str(refusal.value).splitlines()[1:] == [f"  {line}"]
    assert str(refusal.value).splitlines()[0].endswith(": 1 problem")


@pytest.mark.parametrize("word", ["pretrain={1: 2}", "pretrain.steps=" + "9" * 30])
def test_an_override_is_named_once_and_has_no_line(word):
    with pytest.raises(UserError) as refusal:
        load_experiment("quickstart", [word])
    text = str(refusal.value)
    assert text.count("pretrain") == 1 and "(line" not in text and "\n" not in text


def test_other_readers_say_what_they_found():
    with pytest.raises(UserError, match=r"^recipe.flip: expected a number of at most 1 \(got 2\)$"):
        plain_recipe({"flip": 2})
    prune = STEPS.schema("prune")(ratio=0.5, rounds=2, recover={"steps": "x"})
    with pytest.raises(
        UserError,
        match=r"prune.recover.steps: expected a whole number, or null|"
        r"prune.recover.steps: expected a whole number \(got 'x'",
    ):
        between_rounds(prune)


@pytest.mark.parametrize(
    "override, line",
    [
        ("data.display=[0,1,2]", "data.display: chooses among data.channels, which is null; "
                                 "remove it"),
        ("data.window=[3,1]", "data.window: [low, high] requires low < high (got [3, 1])"),
        ("sweep={search: random, maximize: held_out, parameters: {pretrain.steps: 3}}",
         "sweep.parameters.pretrain.steps: expected a list of values, or {low: 1, high: 2} (got "
         "3)"),
        ("compare.other.distill=3", "compare.other.distill: no such setting; 'distill' belongs at "
                                    "the top of the config"),
    ],
)  # fmt: skip
def test_a_key_is_said_once_and_as_a_whole(override, line):
    with pytest.raises(UserError) as refusal:
        load_experiment("quickstart", [override])
    assert f"  {line}" in str(refusal.value).splitlines()
