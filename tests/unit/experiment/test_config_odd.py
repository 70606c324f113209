"""Things people type that are not settings, and what an override leaves unchanged."""

import pytest

from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment, parse_override

BASE = """
schema: 1
name: tiny
data: {kind: digits}
student: {encoder: {name: resnet10t, stem: small, stem_stride: 2, input_size: 32,
  args: {layers: [1, 1, 1, 1]}}}
pretrain: {kind: simclr, steps: 3}
distill: {steps: 2, losses: {feature: {kind: simreg}}}
compress: [{kind: prune, ratio: 0.5}]
"""


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=BASE):
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return load_experiment(path, list(overrides))

    return load


@pytest.fixture
def refusal(load):
    def refusal(*overrides, **more):
        with pytest.raises(UserError) as caught:
            load(*overrides, **more)
        return str(caught.value)

    return refusal


ODD = ["[-1]", "[simclr]", "{a: 1}", "{kind: {}}", "null", "3", "[]", "''", "[[]]"]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    "key",
    ["pretrain", "data", "distill.losses.feature", "compress.0", "teacher", "teachers.a",
     "compare.a.pretrain", "compare.a.losses.x", "plans.a.0", "evaluate.also.a"],
)  # fmt: skip
def test_a_kind_that_is_no_text_is_a_problem_of_its_key(refusal, key, value):
    first, _, last = key.rpartition(".")
    whole = f"plans.a=[{{kind: {value}}}]" if key == "plans.a.0" else f"{key}.kind={value}"
    message = refusal(whole)
    assert (first or last) in message and len(message) < 2000


@pytest.mark.parametrize("value", ["[-1]", "3", "x", "[[]]", "[{}]"])
@pytest.mark.parametrize(
    "key", ["teachers", "compare", "plans", "compress", "evaluate", "paper", "distill", "teacher"]
)
def test_a_section_of_another_type_is_a_problem_of_its_key(refusal, key, value):
    assert f"  {key}" in refusal(f"{key}={value}")


@pytest.mark.parametrize(
    "name", [".", "..", "CON", "nul", "aux.b", "COM1", "a" * 101, "a" * 300, "a.", "a/b", "", "é"]
)
def test_a_name_that_cannot_be_a_folder_is_refused(refusal, name):
    message = refusal(f"name={name}")
    assert "name: " in message and len(message) < 400


@pytest.mark.parametrize("name", ["a" * 100, "console", "con-1", "1", "A.b_c-d"])
def test_other_names_are_taken(load, name):
    assert load(f"name='{name}'")[0].name == name


@pytest.mark.parametrize("key", ["pretrain.optim.lr", "checkpoint_seconds", "pretrain.temperature"])
@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e400", "'inf'", "'nan'"])
def test_a_setting_is_a_finite_number(refusal, key, number):
    assert key in refusal(f"{key}={number}")


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "1000000000", "1.5", "many"])
def test_threads_are_as_many_as_a_machine_may_have(refusal, threads):
    assert "device.threads: " in refusal(f"device.threads={threads}")


@pytest.mark.parametrize("key", [".", "a.", ".a", "a..b", "a[", ""])
def test_a_key_with_an_empty_part_is_no_override(refusal, key):
    assert f"invalid override '{key}=1'; write key.sub=value" in refusal(f"{key}=1")


def test_an_override_that_is_too_deep_or_no_unicode_is_refused_shortly(refusal):
    assert "more than 40 keys" in refusal("a." * 5000 + "a=1")
    assert "is not valid Unicode" in refusal("name=\udcff")
    assert "holds a NUL character" in refusal("name=a\0b")


def test_an_override_reaches_an_item_by_brackets_too(load):
    assert load("compress[0].ratio=0.25")[0].compress[0].ratio == 0.25


def test_references_are_resolved_after_overrides(load, monkeypatch):
    monkeypatch.setenv("SSDISTILL_TEST_STEPS", "9")
    experiment, _ = load(
        "pretrain.steps=${oc.env:SSDISTILL_TEST_STEPS}", "distill.steps=${pretrain.steps}"
    )
    assert experiment.pretrain.steps == experiment.distill.steps == 9


def test_files_that_extend_each_other_thirty_deep_or_doubled_have_an_end(tmp_path, load):
    for number in range(40):
        parents = f"extends: [e{number + 1}.yaml, e{number + 1}.yaml]\n"
        (tmp_path / f"e{number}.yaml").write_text(parents)
    (tmp_path / "e40.yaml").write_text(BASE)
    with pytest.raises(UserError, match="extends chain of more than 20 files"):
        load(text="extends: e0.yaml\n")
    assert load(text="extends: e22.yaml\n")[0].name == "tiny"


def test_a_missing_parent_is_told_with_the_file_that_extends_it(refusal):
    message = refusal(text="extends: nope.yaml\n")
    assert "tiny.yaml: extends nope.yaml: no such file or folder; name a YAML" in message


def test_another_network_keeps_what_it_can_use_and_the_rest_is_said(load):
    experiment, notices = load("student.encoder.name=resnet18")
    encoder = experiment.student.encoder
    assert (encoder.stem, encoder.stem_stride, encoder.input_size) == ("small", 2, 32)
    assert encoder.args == {}
    assert notices == ["ignoring student.encoder.args: they are arguments of resnet10t"]


def test_a_stem_is_left_out_where_the_network_has_none_that_is_known(load):
    experiment, notices = load("student.encoder.name=convnext_atto", "student.encoder.args={a: 1}")
    assert experiment.student.encoder.stem == "auto" and experiment.student.encoder.input_size == 32
    reason = "no small stem is known for convnext_atto"
    assert notices[1:] == [
        f"ignoring student.encoder.{key}: {reason}" for key in ("stem", "stem_stride")
    ]


def test_a_native_stem_is_kept_by_any_network(load):
    experiment, _ = load("student.encoder.stem=native", "student.encoder.name=convnext_atto")
    assert experiment.student.encoder.stem == "native"


def test_the_same_network_keeps_everything(load):
    experiment, notices = load("student.encoder.name=resnet10t")
    assert experiment.student.encoder.args and notices == []


def test_a_file_says_what_it_drops_of_the_one_it_extends(tmp_path, load):
    (tmp_path / "base.yaml").write_text(BASE.replace("steps: 3", "steps: 3, temperature: 0.3"))
    _, notices = load(text="extends: base.yaml\npretrain: {kind: byol}\n")
    assert notices == ["ignoring pretrain.temperature: not a setting of pretrain.kind=byol"]


def test_the_network_of_another_kind_of_teacher_is_not_taken_over(load):
    text = BASE + "teacher: {encoder: {name: resnet10t, stem: small, stem_stride: 2}}\n"
    override = "teacher={kind: checkpoint, path: x.ckpt, encoder: {name: resnet18}}"
    experiment, notices = load(override, text=text)
    assert experiment.teacher.encoder.stem_stride == 1 and notices == []


def test_a_teacher_that_is_pretrained_again_drops_the_path_of_its_checkpoint(load):
    text = BASE + "teacher: {kind: checkpoint, path: x.ckpt}\n"
    experiment, notices = load("teacher.kind=pretrain", text=text)
    assert experiment.teacher.kind == "pretrain"
    assert notices == ["ignoring teacher.path: not a setting of teacher.kind=pretrain"]


def test_a_row_pretrained_in_another_way_drops_what_only_the_former_method_knew(load):
    text = BASE + "compare: {a: {pretrain: {kind: simclr, temperature: 0.2}}}\n"
    _, notices = load("compare.a.pretrain.kind=byol", text=text)
    assert any("ignoring compare.a.pretrain.temperature" in notice for notice in notices)


def test_an_override_has_at_most_forty_keys():
    tree = parse_override(".".join(["a"] * 40) + "=1")
    for _ in range(40):
        tree = tree["a"]
    assert tree == 1
    with pytest.raises(UserError, match=r"^override 'a\.a\..*': nested more than 40 keys deep"):
        parse_override(".".join(["a"] * 41) + "=1")


def test_one_of_several_teachers_pretrained_in_another_way_does_so_too(load):
    text = BASE + "teachers: {a: {pretrain: {kind: simclr, temperature: 0.2}}, b: {}}\n"
    experiment, notices = load("teachers.a.pretrain.kind=byol", text=text)
    assert experiment.teachers["a"].pretrain.kind == "byol"
    reason = "not a setting of teachers.a.pretrain.kind=byol"
    assert notices == [f"ignoring teachers.a.pretrain.temperature: {reason}"]


def test_a_method_named_alone_keeps_its_kind_when_one_of_its_settings_changes(load):
    text = BASE + "teachers: {a: {pretrain: moco}, b: {}}\n"
    experiment, _ = load("teachers.a.pretrain.queue=64", text=text)
    assert experiment.teachers["a"].pretrain.kind == "moco"


@pytest.mark.parametrize(
    "override",
    [
        "teacher.encoder.stem_stride=65",
        "teacher.encoder.stem_padding=1000",
        "teacher.encoder.name=" + "x" * 129,
        f"seeds={list(range(1001))}",
        "data.image_size=8193",
    ],
)
def test_what_no_run_can_have_is_refused_as_it_is_read(load, override):
    with pytest.raises(UserError) as caught:
        load(override)
    assert override.partition("=")[0] in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("mark", ["|", ">", ",", ":", "*", "&", "!", "%", "@", "`", "?", "-", "||"])
def test_punctuation_is_text(mark):
    # A shell removes the quotes of data.label_separator="|".
    assert parse_override(f"data.label_separator={mark}") == {"data": {"label_separator": mark}}
