"""Wherever a kind is chosen, another kind drops the settings that it does not have."""

import pytest

from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment

BASE = """
schema: 1
name: tiny
student: {}
pretrain: {kind: simclr, steps: 3}
distill: {steps: 2, losses: {feature: {kind: simreg}}}
"""
SIMCLR = "{pretrain: {kind: simclr, steps: 3, temperature: 0.2}}"


@pytest.fixture
def load(tmp_path):
    def load(text, override):
        path = tmp_path / "tiny.yaml"
        data = "" if "data:" in text else "data: digits\n"
        path.write_text(f"{BASE}{data}{text}\n")
        return load_experiment(path, [override])

    return load


@pytest.mark.parametrize(
    ("text", "section", "kind", "dropped"),
    [
        ("data: {kind: folder, path: x}", "data", "digits", "path"),
        ("compress: [{kind: prune, ratio: 0.5}]", "compress.0", "quantize", "ratio"),
        ("plans: {p: [{kind: prune, ratio: 0.5}]}", "plans.p.0", "quantize", "ratio"),
        ("teacher: {kind: checkpoint, path: x}", "teacher", "pretrain", "path"),
        ("teachers: {a: {kind: checkpoint, path: x}}", "teachers.a", "pretrain", "path"),
        (f"teacher: {SIMCLR}", "teacher.pretrain", "byol", "temperature"),
        (f"teachers: {{a: {SIMCLR}}}", "teachers.a.pretrain", "byol", "temperature"),
        (f"compare: {{a: {SIMCLR}}}", "compare.a.pretrain", "byol", "temperature"),
        (
            "compare: {a: {losses: {b: {kind: infonce, temperature: 0.2}}}}",
            "compare.a.losses.b",
            "cosine",
            "temperature",
        ),
        (
            "evaluate: {linear: null, also: {x: {kind: knn, k: 3}}}",
            "evaluate.also.x",
            "linear",
            "k",
        ),
    ],
)
def test_what_only_the_old_kind_knew_is_dropped_and_said(load, text, section, kind, dropped):
    _, notices = load(text, f"{section}.kind={kind}")
    notice = f"ignoring {section}.{dropped}: not a setting of {section}.kind={kind}"
    assert notices == [notice]


def test_a_setting_of_both_kinds_stays_and_one_that_is_given_anew_is_the_new_one(load):
    text = "data: {kind: cifar10, root: old, image_size: 16}"
    experiment, notices = load(text, "data={kind: cifar100, root: new}")
    assert (experiment.data.kind, experiment.data.root) == ("cifar100", "new")
    assert experiment.data.image_size == 16 and notices == []


def test_a_text_where_no_kind_is_chosen_is_replaced_by_a_section(load):
    with pytest.raises(UserError, match="name: expected text"):
        load("", "name.a=1")
