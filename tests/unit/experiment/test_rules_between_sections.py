"""What sections of a config demand of each other, and what follows from several of them."""

import pytest

from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment

BASE = """
schema: 1
name: tiny
data: {kind: digits}
student: {}
pretrain: {kind: simclr, steps: 3}
distill: {steps: 2, losses: {feature: {kind: simreg}}}
"""
EXISTING = "teacher={kind: checkpoint, path: x.ckpt}"
SEVERAL = "teachers={a: {kind: checkpoint, path: a.ckpt}, b: {kind: checkpoint, path: b.ckpt}}"
OTHER_ROW = "compare={other: {pretrain: {kind: byol}}}"


@pytest.fixture
def load(tmp_path):
    def load(*overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(BASE)
        return load_experiment(path, list(overrides))[0]

    return load


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([EXISTING, SEVERAL], "teachers: teacher and teachers are both set; remove"),
        (["pretrain=null"], "pretrain: required, unless teacher.kind names an existing teacher"),
        (
            [EXISTING, "pretrain=null", "control={}"],
            "control: requires a pretrain section (the method it is trained by)",
        ),
        (["student=null"], "student: required with distill"),
        (
            ["distill=null", "compare={simclr: {pretrain: {kind: byol}}}"],
            "compare.simclr: the row of 'pretrain' already has this name; choose another",
        ),
        (
            [SEVERAL, OTHER_ROW],
            "compare.other: pretrain requires a single teacher to compare with",
        ),
        ([EXISTING, OTHER_ROW], "compare.other: requires a teacher that is pretrained here"),
        (
            ["compress=[quantize, {kind: prune, ratio: 0.5}]"],
            "compress.1: prune cannot follow quantize",
        ),
        (
            ["compress=[quantize, quantize, {kind: prune, ratio: 0.5}]"],
            "compress.2: prune cannot follow quantize",
        ),
    ],
)
def test_what_a_section_demands_of_another_is_said_with_its_key(load, overrides, message):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [EXISTING, "pretrain=null"],
        [SEVERAL, "pretrain=null"],
        [EXISTING, "pretrain=null", "control=null"],
        ["student=null", "distill=null"],
        [OTHER_ROW],
        ["compress=[{kind: prune, ratio: 0.5}, quantize]", "plans={a: [quantize]}"],
    ],
)
def test_what_meets_the_demands_is_read(load, overrides):
    assert load(*overrides).name == "tiny"


def test_a_model_that_is_compressed_recovers_as_the_student_was_trained(load):
    experiment = load("compress=[quantize]")
    assert experiment.recovery is experiment.distill
    alone = load("distill=null", "student=null", "compress=[quantize]").recovery
    assert (alone.steps, alone.epochs) == (1, None)
    assert [loss.kind for loss in alone.losses.values()] == ["cosine"]


def test_the_model_that_is_compressed_is_the_student_or_else_the_teacher(load):
    assert load().compressed is None
    assert load("compress=[quantize]").compressed == "distilled"
    assert load("plans={a: [quantize]}").compressed == "distilled"
    alone = ["distill=null", "student=null", "compress=[quantize]"]
    assert load(*alone).compressed == "simclr"
    assert load(*alone, EXISTING, "pretrain=null").compressed == "teacher"


@pytest.mark.parametrize("name", ["a.b", "a/b", "a b", "-a", "_a", "a*", "é", "''"])
def test_a_teacher_whose_name_no_metric_can_have_is_refused(load, name):
    one, other = ("{kind: checkpoint, path: a.ckpt}" for _ in range(2))
    with pytest.raises(UserError, match="teachers"):
        load(f"teachers={{{name}: {one}, b: {other}}}")
    assert list(load(f"teachers={{a-1_B: {one}, b: {other}}}").teachers) == ["a-1_B", "b"]


def test_teachers_are_called_by_their_names_their_method_or_teacher(load):
    assert list(load().all_teachers) == ["teacher"]
    assert list(load(SEVERAL).all_teachers) == ["teacher_a", "teacher_b"]
    assert list(load("distill=null").all_teachers) == ["simclr"]
    own = load("distill=null", "teacher={pretrain: {kind: byol}}")
    assert list(own.all_teachers) == ["byol"]
    assert list(load("distill=null", EXISTING).all_teachers) == ["teacher"]


def test_a_teacher_of_several_is_pretrained_by_its_own_method_or_by_the_shared_one(load):
    teachers = "teachers={a: {pretrain: byol}, b: {}, c: {kind: checkpoint, path: c.ckpt}}"
    pretrained = load(teachers).pretrained
    assert {name: method.kind for name, (_, method) in pretrained.items()} == {
        "teacher_a": "byol",
        "teacher_b": "simclr",
    }


def test_all_plans_are_those_of_compress_and_of_plans(load):
    experiment = load("compress=[quantize]", "plans={a: [{kind: prune, ratio: 0.5}], b: []}")
    kinds = {
        name: [s.kind for s in steps] for name, steps in experiment.compression_variants.items()
    }
    assert kinds == {"": ["quantize"], "a": ["prune"], "b": []}
