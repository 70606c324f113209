import pytest
from pydantic import ValidationError

from ssdistill.errors import UserError
from ssdistill.experiment.reading import find_config, load_experiment

BASE = """
schema: 1
name: tiny
data: {kind: digits}
student: {}
pretrain: {kind: simclr, steps: 3, temperature: 0.3}
distill:
  steps: 2
  losses: {feature: {kind: simreg, depth: 2}}
compress:
  - {kind: prune, ratio: 0.5}
  - {kind: quantize}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="tiny.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def load(write):
    def load(*overrides, text=BASE):
        return load_experiment(write(text), list(overrides))

    return load


@pytest.fixture
def refusal(load):
    def refusal(*overrides, text=BASE):
        with pytest.raises(UserError) as caught:
            load(*overrides, text=text)
        return str(caught.value)

    return refusal


def test_defaults_and_values_of_a_file_meet(load):
    experiment, notices = load()
    assert (experiment.name, experiment.seeds, experiment.profile) == ("tiny", (0,), "reduced")
    assert experiment.pretrain.temperature == 0.3
    assert experiment.distill.losses["feature"].depth == 2
    assert [step.kind for step in experiment.compress] == ["prune", "quantize"]
    assert notices == []


def test_an_experiment_is_frozen(load):
    experiment, _ = load()
    with pytest.raises(ValidationError):
        experiment.name = "other"
    with pytest.raises(ValidationError):
        experiment.pretrain.steps = 4


def test_parents_lie_beside_the_file_and_what_it_says_wins(write):
    write("schema: 1\nname: parent\ndata: digits\nseeds: [4, 5]\n", "base/parent.yaml")
    child = (
        "extends: base/parent.yaml\nname: child\nstudent: {}\npretrain: {kind: byol, steps: 1}\n"
    )
    experiment, _ = load_experiment(write(child))
    assert (experiment.name, experiment.seeds) == ("child", (4, 5))


def test_later_parents_win_over_earlier_ones_and_mappings_are_merged(write):
    write("schema: 1\nname: a\ndata: digits\nevaluate: {pixels: true}\n", "a.yaml")
    write("name: b\nstudent: {}\nevaluate: {knn: {k: 3}}\n", "b.yaml")
    experiment, _ = load_experiment(
        write("extends: [a.yaml, b.yaml]\npretrain: {kind: simclr, steps: 1}\n")
    )
    assert experiment.name == "b"
    assert experiment.evaluate.pixels and experiment.evaluate.knn.k == 3


def test_a_parent_of_a_parent_is_found_from_where_it_stands(write):
    write("schema: 1\ndata: digits\nstudent: {}\n", "base/deep/root.yaml")
    write("extends: deep/root.yaml\nname: middle\n", "base/middle.yaml")
    experiment, _ = load_experiment(
        write("extends: base/middle.yaml\npretrain: {kind: simclr, steps: 1}\n")
    )
    assert (experiment.name, experiment.data.kind) == ("middle", "digits")


def test_a_packaged_config_can_be_a_parent_and_can_be_named_without_its_ending(write):
    experiment, _ = load_experiment(write("extends: quickstart\nname: mine\n"))
    assert experiment.name == "mine" and experiment.data.kind == "digits"
    assert find_config("quickstart").name == "quickstart.yaml"


def test_a_circle_of_parents_is_refused(write):
    write("extends: tiny.yaml\n", "other.yaml")
    with pytest.raises(UserError, match=r"tiny\.yaml: extends itself through other\.yaml"):
        load_experiment(write("extends: other.yaml\n"))


def test_a_circle_by_way_of_another_folder_is_recognized(write):
    write("extends: ../sub/../tiny.yaml\n", "sub/other.yaml")
    with pytest.raises(UserError, match=r"tiny\.yaml: extends itself through other\.yaml"):
        load_experiment(write("extends: sub/other.yaml\n"))


def test_one_parent_by_two_ways_is_no_circle(write):
    write("schema: 1\nname: x\ndata: digits\nstudent: {}\n", "root.yaml")
    for name in ("a.yaml", "b.yaml"):
        write("extends: root.yaml\n", name)
    text = "extends: [a.yaml, b.yaml]\npretrain: {kind: simclr, steps: 1}\n"
    assert load_experiment(write(text))[0].name == "x"


@pytest.mark.parametrize("parents", ["3", "[3]"])
def test_a_parent_that_is_no_file_name_is_refused(refusal, parents):
    assert "extends" in refusal(text=f"extends: {parents}\n{BASE}")


def test_overrides_change_scalars_lists_and_items_of_lists(load):
    experiment, _ = load(
        "pretrain.optim.lr=1e-3", "seeds=[3,4]", "compress.0.ratio=0.25", "seeds.1=9"
    )
    assert experiment.pretrain.optim.lr == 1e-3
    assert experiment.seeds == (3, 9)
    assert [step.kind for step in experiment.compress] == ["prune", "quantize"]
    assert experiment.compress[0].ratio == 0.25


def test_an_item_that_a_list_has_not_is_refused(refusal):
    assert refusal("compress.2.ratio=0.25") == (
        "compress.2: compress has items 0 to 1; write the whole list"
    )


def test_null_switches_a_part_off(load):
    experiment, _ = load("distill=null", "evaluate=null", "control=null")
    assert (experiment.distill, experiment.evaluate, experiment.control) == (None, None, None)


@pytest.mark.parametrize("wrong", ["nothing", "pretrain.steps"])
def test_an_override_without_a_value_is_refused(refusal, wrong):
    assert refusal(wrong) == (
        f"invalid override '{wrong}'; write key.sub=value without "
        "blanks, such as pretrain.steps=100 (is an = missing?)"
    )


def test_a_second_config_is_no_setting(refusal):
    assert refusal("b.yaml").endswith("one config is run at a time: name the other one in its 'ext"
                                      "ends'")  # fmt: skip


def test_an_override_that_is_no_yaml_is_refused_with_its_text(refusal):
    message = refusal("seeds=[1")
    assert "seeds=[1" in message and "\n" not in message


@pytest.mark.parametrize("value", ["photos #2", "#photos", "  photos # 2", "a [b] #c"])
def test_an_override_holds_no_comment(load, value):
    experiment, _ = load("data.kind=folder", f"data.path={value}")
    assert experiment.data.path == value.strip()


@pytest.mark.parametrize("value", ['"photos #2"', "'photos #2'"])
def test_a_quoted_override_is_its_content(load, value):
    experiment, _ = load("data.kind=folder", f"data.path={value}")
    assert experiment.data.path == "photos #2"


def test_blanks_around_the_equals_sign_are_no_part_of_the_key(load):
    experiment, _ = load("pretrain.optim.lr = 0.25")
    assert experiment.pretrain.optim.lr == 0.25


def test_a_single_seed_needs_no_list(load):
    assert load("seeds=3")[0].seeds == (3,)
    assert load("--seeds=3")[0].seeds == (3,)


@pytest.mark.parametrize("seeds", ["[1,1]", "[0,2,1,2]"])
def test_a_seed_that_is_listed_twice_is_refused(refusal, seeds):
    twice = "1" if seeds == "[1,1]" else "2"
    assert f"seeds: seed {twice} is listed twice; list each seed once" in refusal(f"seeds={seeds}")


def test_null_takes_a_loss_out(load, refusal):
    experiment, _ = load("distill.losses.other.kind=mse", "distill.losses.feature=null")
    assert list(experiment.distill.losses) == ["other"]
    assert "distill.losses: " in refusal("distill.losses.feature=null")


def test_a_kind_may_stand_alone(load):
    text = BASE.replace("{kind: quantize}", "quantize").replace("{kind: digits}", "digits")
    experiment, _ = load(text=text)
    assert (experiment.data.kind, experiment.compress[1].kind) == ("digits", "quantize")
    assert load("data=cifar10")[0].data.kind == "cifar10"


@pytest.mark.parametrize(
    "text, override, reached",
    [
        (BASE.replace("{kind: digits}", "cifar10"), "data.root=elsewhere", "elsewhere"),
        (BASE.replace("{kind: quantize}", "recover"), "compress.1.steps=7", 7),
    ],
    ids=["data", "compress"],
)
def test_an_override_reaches_into_a_kind_that_stands_alone(load, text, override, reached):
    experiment, _ = load(override, text=text)
    assert reached in (
        getattr(experiment.data, "root", None),
        getattr(experiment.compress[1], "steps", None),
    )


def test_a_changed_kind_drops_what_only_the_old_one_knew_and_says_so(load):
    experiment, notices = load("pretrain.kind=byol", "compress.0.kind=quantize")
    assert (experiment.pretrain.kind, experiment.pretrain.steps) == ("byol", 3)
    assert experiment.compress[0].kind == "quantize"
    assert notices == [
        "ignoring pretrain.temperature: not a setting of pretrain.kind=byol",
        "ignoring compress.0.ratio: not a setting of compress.0.kind=quantize",
    ]


def test_the_same_kind_again_drops_nothing(load):
    experiment, notices = load("pretrain.kind=simclr")
    assert experiment.pretrain.temperature == 0.3 and notices == []


def test_a_misspelt_setting_is_refused_though_its_section_is_overridden(refusal):
    text = BASE.replace("temperature", "temprature")
    assert "did you mean 'temperature'?" in refusal("pretrain.steps=5", text=text)


def test_a_setting_given_with_the_new_kind_is_kept_to_be_judged(refusal):
    text = BASE.replace("{kind: simreg, depth: 2}", "{kind: infonce, temperature: 1.0}")
    assert "distill.losses.feature.depht: no such setting" in refusal(
        "distill.losses.feature={kind: simreg, depht: 2}", text=text
    )


def test_all_problems_are_told_at_once_each_with_its_key_and_nearest_name(refusal):
    lines = refusal(
        "pretrain.stepz=3",
        "dta=3",
        "distill.losses.feature.wieght=1",
        "student.encoder.nam=x",
        "compress.0.ration=1",
        "device.precision=fp8",
        "evaluate.knn.k=0",
        text=BASE + "distill.steps: 3\n",
    ).splitlines()
    assert lines[0].endswith("tiny.yaml: 8 problems")
    assert set(lines[1:]) == {
        "  pretrain.stepz: no such setting (did you mean 'steps'?)",
        "  dta: no such setting (did you mean 'data'?)",
        "  distill.steps: no such setting; nest the keys: distill: {steps: …}",
        "  distill.losses.feature.wieght: no such setting (did you mean 'weight'?)",
        "  student.encoder.nam: no such setting (did you mean 'name'?)",
        "  compress.0.ration: no such setting (did you mean 'ratio'?)",
        "  device.precision: expected 'auto', 'fp32', 'bf16' or 'fp16' (got 'fp8')",
        "  evaluate.knn.k: expected a number above 0, or null (got 0)",
    }


@pytest.mark.parametrize(
    "override, nearest",
    [
        ("data=cifar01", "data.kind: 'cifar01' is unknown (did you mean 'cifar10'?)"),
        ("pretrain.kind=simcl", "pretrain.kind: 'simcl' is unknown (did you mean 'simclr'?)"),
        (
            "distill.losses.feature.kind=simre",
            "distill.losses.feature.kind: 'simre' is unknown (did you mean 'simreg'?)",
        ),
        ("compress.0.kind=prun", "compress.0.kind: 'prun' is unknown (did you mean 'prune'?)"),
    ],
)
def test_an_unknown_kind_is_told_with_the_nearest_and_the_known_ones(refusal, override, nearest):
    message = refusal(override)
    assert nearest in message and "; known: " in message


@pytest.mark.parametrize(
    "override, key",
    [
        ("pretrain.optim.lr=fast", "pretrain.optim.lr: expected a number"),
        ("seeds=zero", "seeds: expected a list, such as [a, b] (got 'zero')"),
        ("seeds=true", "seeds: expected a list, such as [a, b] (got true)"),
        ("name=10", "name: expected text (got 10; text that YAML reads other"),
        ("name=on", "name: expected text (got true; text that YAML reads other"),
        ("name=a b", "name: expected letters, digits, '_', '.' and '-', first a letter"),
        ("schema=2", "schema: expected 1 (got 2)"),
        ("distill.losses=[]", "distill.losses: expected a mapping of names"),
        ("device.threads=four", "device.threads: expected a whole number, or null (got 'f"),
        ("seeds=[]", "seeds: expected a list of at least 1 item (got [])"),
        ("student=null", "student: required with distill; add"),
        ("paper.claims=[better]", "paper.claims.0: "),
    ],
)
def test_a_wrong_type_is_told_with_its_key(refusal, override, key):
    assert f"  {key}" in refusal(override)


@pytest.mark.parametrize(
    "override, key",
    [
        ("distill.views=[{crop: 1}]", "distill.views.0.crop: no such setting"),
        ("distill.views=[]", "distill.views: expected a list of at least 1 item, or null (got [])"),
    ],
)
def test_a_problem_in_a_view_is_told_by_a_key_one_can_write(refusal, override, key):
    assert f"  {key}" in refusal(override)


def test_one_bad_item_of_a_list_is_one_problem(refusal):
    assert refusal("seeds=[a]").splitlines()[0].endswith(": 1 problem")


@pytest.mark.parametrize(
    "both_or_none, found",
    [
        ("pretrain.epochs=2", "steps=3 and epochs=2 are set"),
        ("pretrain.steps=null", "none is set"),
    ],
)
def test_a_training_has_steps_or_epochs_and_never_both(refusal, both_or_none, found):
    assert f"pretrain: set exactly one of steps and epochs ({found})" in refusal(both_or_none)


def test_epochs_may_take_the_place_of_steps(load):
    experiment, _ = load("pretrain.steps=null", "pretrain.epochs=1.5")
    assert experiment.pretrain.num_steps(10) == 15


def test_a_key_given_twice_is_refused_with_its_line(refusal):
    message = refusal(text=BASE + "name: again\n")
    assert "duplicate key name" in message and "(line 13)" in message


@pytest.mark.parametrize(
    "text, reason",
    [
        ("- a\n- b\n", "expected a mapping"),
        ("a: [1\n", "tiny.yaml: "),
        ("", "name: required"),
    ],
    ids=["list", "broken", "empty"],
)
def test_a_file_that_is_no_config_is_refused_by_name(refusal, text, reason):
    message = refusal(text=text)
    assert reason in message and "tiny.yaml" in message


def test_a_missing_file_names_the_nearest_packaged_config(tmp_path):
    with pytest.raises(UserError) as caught:
        load_experiment("quickstrt")
    assert str(caught.value) == (
        "quickstrt: no such file or folder (did you mean 'quickstart'?); name a YAML file or "
        "a packaged config, such as quickstart"
    )
    with pytest.raises(UserError, match="zzz: no such file or folder; name a YAML file or a pack"):
        load_experiment("zzz")
    with pytest.raises(UserError, match="is a folder; name a YAML file in it"):
        load_experiment(tmp_path)


COMPARED = """
compare:
  bare: {losses: {similarity: {kind: seed, temperature_teacher: 0.04}}}
  longer: {epochs: 3}
"""


def test_a_compared_student_has_what_it_does_not_change_from_distill(load):
    experiment, notices = load("distill.batch_size=32", text=BASE + COMPARED)
    bare, longer = experiment.compare["bare"], experiment.compare["longer"]
    assert (bare.steps, bare.batch_size, list(bare.losses)) == (2, 32, ["similarity"])
    assert (longer.steps, longer.epochs, list(longer.losses)) == (None, 3, ["feature"])
    assert notices == []


def test_a_compared_student_can_be_overridden(load):
    override = "compare.bare.losses.similarity.kind=simreg"
    experiment, notices = load(override, text=BASE + COMPARED)
    assert experiment.compare["bare"].losses["similarity"].kind == "simreg"
    assert notices == [
        "ignoring compare.bare.losses.similarity.temperature_teacher: "
        "not a setting of compare.bare.losses.similarity.kind=simreg"
    ]


@pytest.mark.parametrize("row", ["teacher", "control_time", "pruned_2", "int8", "a b"])
def test_a_row_the_chain_has_already_is_refused(refusal, row):
    text = BASE + f"compare: {{'{row}': {{steps: 3}}}}"
    assert "compare" in refusal("seeds=[0]", text=text)


def test_nothing_is_compared_without_a_distillation(refusal):
    text = BASE + "compare: {other: {steps: 3, losses: {a: {kind: simreg}}}}"
    assert "compare.other: requires a distill section" in refusal("distill=null", text=text)


@pytest.mark.parametrize("name", ["total", "norm"])
def test_a_loss_named_like_a_metric_is_refused(refusal, name):
    message = refusal(f"distill.losses.{name}.kind=simreg")
    assert f"'{name}' is the name of a metric" in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("distill.losses.feature.pairs=[[0]]", "distill.losses.feature.pairs"),
        ("distill.losses.feature.schedule=linear", "distill.losses.feature.schedule"),
        ("distill.mix.kind=mixop", "distill.mix.kind"),
        ("distill.interpolate.alpha=2", "distill.interpolate.alpha"),
    ],
)
def test_a_wrong_schedule_pair_or_mixture_is_told_with_its_key(refusal, override, key):
    assert f"{key}" in refusal(override)


def test_arguments_of_another_network_are_not_mixed_with_the_old_ones(load):
    text = BASE.replace("student: {}", "student: {encoder: {name: resnet18, args: {layers: [1]}}}")
    experiment, notices = load("student.encoder={name: resnet34, args: {width: 3}}", text=text)
    assert experiment.student.encoder.args == {"width": 3}
    assert notices == []
