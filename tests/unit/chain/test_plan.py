from types import SimpleNamespace

import pytest
import torch

from ssdistill.chain import training
from ssdistill.chain.plan import evaluations_of, latency_stage, models_of, plan_stages
from ssdistill.chain.stages import Identity
from ssdistill.chain.training import fresh_encoder
from ssdistill.errors import UserError
from ssdistill.settings.registry import METHODS


def digests(models):
    return {role: stage.digest for role, stage in models.items()}


def changed(before, after):
    """Roles whose hash has changed."""
    assert before.keys() == after.keys()
    return {role for role in before if before[role].digest != after[role].digest}


def parents(stage):
    return {part: parent.role for part, parent in stage.parents.items()}


def test_the_whole_chain_is_planned_with_its_parents(models):
    stages = models()
    assert {role: parents(stage) for role, stage in stages.items()} == {
        "untrained": {},
        "teacher": {},
        "control": {},
        "distilled": {"teacher": "teacher"},
        "pruned": {"model": "distilled", "before": "distilled", "original": "distilled"},
        "recovered": {
            "model": "pruned",
            "before": "distilled",
            "original": "distilled",
            "teacher": "teacher",
        },
        "int8": {"model": "recovered", "before": "distilled", "original": "distilled"},
    }
    assert [stage.kind for stage in stages.values()] == [
        "initialize",
        "pretrain",
        "pretrain",
        "distill",
        "compress",
        "compress",
        "compress",
    ]


def test_parents_stand_before_children_and_nothing_stands_twice(make_workspace):
    stages = plan_stages(make_workspace("evaluate.pixels=true"))
    done = set()
    for stage in stages:
        assert {(p.digest, p.seed) for p in stage.parents.values()} <= done, stage.role
        assert (stage.digest, stage.seed) not in done
        done.add((stage.digest, stage.seed))
    assert {stage.seed for stage in stages} == {0, 1}
    assert [stage.seed for stage in stages if stage.kind == "latency"] == [0, 1]


def test_seeds_share_digests(models):
    assert digests(models(seed=0)) == digests(models(seed=1))
    assert {stage.seed for stage in models(seed=1).values()} == {1}


def test_a_step_used_twice_is_numbered(models):
    stages = models("compress=[{kind: prune, ratio: 0.5}, {kind: prune, ratio: 0.2}]")
    assert list(stages)[-2:] == ["pruned", "pruned_2"]
    assert parents(stages["pruned_2"]) == {
        "model": "pruned",
        "before": "distilled",
        "original": "distilled",
    }


PLANS = (
    "compress=[{kind: prune, ratio: 0.5}, {kind: quantize}]",
    "plans={small: [{kind: prune, ratio: 0.5}, {kind: recover, steps: 2}, {kind: quantize}], "
    "direct: [{kind: quantize}]}",
)


def test_steps_that_take_away_in_a_row_are_repaired_together(models):
    stages = models(
        "compress=[{kind: prune, ratio: 0.3}, {kind: lowrank, macs: 0.7}, {kind: refit},"
        " {kind: prune, ratio: 0.3}, {kind: refit}]"
    )
    before = {role: stage.parents.get("before") for role, stage in stages.items()}
    assert before["factorized"] is before["refitted"] is stages["distilled"]
    assert before["pruned_2"] is stages["distilled"]
    assert before["refitted_2"] is stages["refitted"]


def test_plans_stand_side_by_side_and_share_what_they_begin_with(models):
    stages = models(*PLANS)
    made = list(stages)[list(stages).index("distilled") + 1 :]
    assert made == ["pruned", "int8", "small_recovered", "small", "direct"]
    assert stages["small_recovered"].parents["model"] is stages["pruned"]
    assert stages["direct"].parents["model"] is stages["distilled"]
    assert stages["small"].parents["before"] is stages["distilled"]


def test_a_plan_may_not_go_on_from_a_file_for_a_runtime(models):
    message = "plans.b.1: prune cannot follow quantize, which makes a file for a runtime"
    with pytest.raises(UserError, match=message):
        models("plans={b: [quantize, {kind: prune, ratio: 0.5}]}")


def test_a_plan_may_not_be_called_like_another_row(models):
    with pytest.raises(UserError, match=r"plans\.distilled: 'distilled' is reserved for the chain"):
        models("plans={distilled: [quantize]}")
    with pytest.raises(UserError, match=r"plans\.a: compare already has a row of this name"):
        models("plans={a: [quantize]}", "compare={a: {steps: 9}}")


def test_without_distillation_the_teacher_is_compressed(models):
    stages = models("distill=null")
    assert list(stages) == ["untrained", "simclr", "pruned", "recovered", "int8"]
    assert parents(stages["recovered"]) == {
        "model": "pruned",
        "before": "simclr",
        "original": "simclr",
    }
    assert list(stages["recovered"].config["distill"]["training"]["losses"]) == ["feature"]


def test_one_of_several_teachers_cannot_be_compressed_unnamed(models):
    teachers = "teachers={a: {kind: pretrain}, b: {kind: pretrain}}"
    with pytest.raises(UserError, match="compress: ambiguous with several teachers"):
        models(teachers, "distill=null", teacher=False)


def test_without_distillation_only_the_teacher_is_left_and_called_by_its_method(models):
    assert list(models("distill=null", "compress=[]")) == ["untrained", "simclr"]
    assert models("distill=null")["simclr"].digest == models()["teacher"].digest


def test_without_control_none_is_planned(models):
    assert "control" not in models("control=null")


def test_budgets_of_the_control_are_stages_made_from_what_they_are_measured_by(models):
    stages = models("control.budgets=[steps,time,total]")
    assert parents(stages["control"]) == {}
    assert parents(stages["control_time"]) == {"distilled": "distilled"}
    assert parents(stages["control_total"]) == {"distilled": "distilled", "teacher": "teacher"}
    assert [stages[f"control_{b}"].config["budget"] for b in ("time", "total")] == ["time", "total"]
    assert len({stages[role].digest for role in stages}) == len(stages)


def control_and_distilled(stages):
    """Steps of both on 24 images."""
    method = stages["control"].config["method"]
    control = METHODS.schema(method["kind"]).model_validate(method)
    training = stages["distilled"].config["training"]
    of_distilled = training["steps"] or round(training["epochs"] * (24 // training["batch_size"]))
    return control.num_steps(24 // control.batch_size), of_distilled


@pytest.mark.parametrize(
    "length",
    [
        ["distill.steps=6"],
        ["distill.steps=null", "distill.epochs=4"],
        ["distill.steps=null", "distill.epochs=4", "distill.batch_size=4"],
    ],
    ids=["steps", "epochs", "epochs of smaller batches"],
)
def test_the_control_takes_as_many_steps_as_the_distillation(models, length):
    control, distilled = control_and_distilled(models(*length))
    assert control == distilled


def test_the_control_learns_by_the_teachers_method_on_the_students_network(models):
    stages = models("pretrain.temperature=0.4", "control.optim={kind: sgd, lr: 0.3}")
    control, teacher = (stages[role].config for role in ("control", "teacher"))
    assert control["method"]["temperature"] == 0.4
    assert control["encoder"] == stages["distilled"].config["encoder"]
    assert control["encoder"] != teacher["encoder"]
    assert (control["method"]["optim"]["kind"], teacher["method"]["optim"]["kind"]) == (
        "sgd",
        "adamw",
    )


@pytest.mark.parametrize(
    "counted, expected", [(["distilled"], 12), (["distilled", "teacher"], 39), (None, None)]
)
def test_a_budget_becomes_steps_by_ratios_and_stays_what_it_was(
    tmp_path, monkeypatch, counted, expected
):
    lengths = {"control": 6, "distilled": 6, "teacher": 9}

    def prepare(role, workspace):
        return SimpleNamespace(loader=SimpleNamespace(num_steps=lengths[role])), None

    ratios = {"control": 1.0, "distilled": 2.0, "teacher": 3.0}
    monkeypatch.setattr(training, "task_of", lambda stage, workspace: (stage,))
    monkeypatch.setattr(
        training,
        "prepare",
        lambda task, stage, workspace: prepare(getattr(stage, "role", stage), None),
    )
    monkeypatch.setattr(
        training, "step_ratios", lambda trainings, to: {role: ratios[role] for role in trainings}
    )
    stage = SimpleNamespace(
        config={"budget": "time"} if counted else {},
        parents={role: role for role in counted or ()},
        role="control",
    )
    assert training.budgeted_steps(stage, None, tmp_path) == expected
    # A resumed training must not become another one.
    ratios["distilled"] = 100.0
    assert training.budgeted_steps(stage, None, tmp_path) == expected


def test_a_teacher_with_a_seed_of_its_own_is_trained_once_for_all(make_workspace):
    workspace = make_workspace("pretrain.seed=7")
    stages = plan_stages(workspace)
    teachers = [s for s in stages if s.kind == "pretrain" and s.role == "teacher"]
    assert [teacher.seed for teacher in teachers] == [7]
    distilled = [s for s in stages if s.kind == "distill"]
    assert [s.seed for s in distilled] == [0, 1]
    assert all(s.parents["teacher"] == teachers[0] for s in distilled)
    assert [s.seed for s in stages if s.role == "control" and s.kind == "pretrain"] == [0, 1]
    judged = [s for s in stages if s.kind == "evaluate" and s.role == "teacher"]
    assert [s.seed for s in judged] == [7]


def same_weights(a, b):
    a, b = fresh_encoder(a).state_dict(), fresh_encoder(b).state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_untrained_control_and_distilled_start_from_the_same_weights(models):
    stages = models("control.budgets=[steps,time]", "control.optim={kind: sgd}")
    for role in ("control", "control_time", "distilled"):
        torch.manual_seed(99)
        assert same_weights(stages["untrained"], stages[role]), role
    assert not same_weights(stages["untrained"], models(seed=1)["untrained"])


def test_an_encoders_start_depends_on_no_training_setting(models):
    assert same_weights(
        models()["distilled"], models("distill.steps=2", "distill.optim.lr=0.1")["distilled"]
    )


@pytest.mark.parametrize(
    "override",
    [
        "tracking.log_every=3",
        "tracking.wandb=disabled",
        "device.compile=true",
        "device.threads=2",
        "device.accelerator=cpu",
        "name=another",
        "profile=smoke",
        "seeds=[0]",
        "paper={title: x}",
    ],
)
def test_what_decides_no_number_leaves_every_digest(make_workspace, override):
    before, after = make_workspace(), make_workspace(override)
    assert not changed(models_of(before, 0), models_of(after, 0))
    assert not changed(evaluations_of(before, 0), evaluations_of(after, 0))
    assert latency_stage(before, 0).digest == latency_stage(after, 0).digest


def test_latencies_are_left_to_another_time(make_workspace):
    before, after = make_workspace(), make_workspace("measure.latency=false")
    assert latency_stage(before, 0) is not None and latency_stage(after, 0) is None
    kinds = [{stage.kind for stage in plan_stages(each)} for each in (before, after)]
    assert kinds[0] - kinds[1] == {"latency"}
    assert not changed(evaluations_of(before, 0), evaluations_of(after, 0))
    named = make_workspace("measure.latency=true")
    assert Identity.of(named.experiment).digest == Identity.of(before.experiment).digest


def test_peak_memory_without_latencies_is_refused(make_workspace):
    with pytest.raises(UserError, match=r"measure\.memory: requires measure\.latency=true"):
        make_workspace("measure.latency=false", "measure.memory=true")


@pytest.mark.parametrize("override", ["tracking.log_every=3", "device.compile=true"])
def test_tracking_and_hardware_are_no_part_of_an_experiments_identity(make_workspace, override):
    groups = [Identity.of(make_workspace(*o).experiment).group for o in ([], [override])]
    assert groups[0] == groups[1]


@pytest.mark.parametrize(
    "override",
    ["evaluate.knn.k=3", "evaluate.linear=null", "evaluate=null", "evaluate.pixels=true"],
)
def test_other_probes_retrain_nothing(make_workspace, override):
    before, after = make_workspace(), make_workspace(override)
    assert not changed(models_of(before, 0), models_of(after, 0))
    judged_before, judged_after = evaluations_of(before, 0), evaluations_of(after, 0)
    assert all(judged_before[role].digest != judged_after[role].digest for role in judged_before)


@pytest.mark.parametrize(
    "override, affected",
    [
        ("distill.losses.feature.weight=2", {"distilled", "pruned", "recovered", "int8"}),
        ("distill.optim.lr=0.1", {"distilled", "pruned", "recovered", "int8"}),
        ("compress.1.steps=3", {"recovered", "int8"}),
        ("control.optim={kind: sgd}", {"control"}),
        (
            "pretrain.temperature=1.0",
            {"teacher", "control", "distilled", "pruned", "recovered", "int8"},
        ),
        (
            "device.precision=bf16",
            {"teacher", "control", "distilled", "pruned", "recovered", "int8"},
        ),
    ],
)
def test_a_changed_setting_changes_what_is_made_with_it_and_nothing_else(
    models, override, affected
):
    assert changed(models(), models(override)) == affected


def test_other_pictures_change_everything(models):
    assert changed(models(), models(train="0" * 64)) == set(models())


def test_every_model_is_judged_beside_the_teacher(make_workspace):
    evaluations = evaluations_of(make_workspace("evaluate.pixels=true"), 0)
    assert next(iter(evaluations)) == "teacher"
    assert parents(evaluations["teacher"]) == {"model": "teacher"}
    assert parents(evaluations["pixels"]) == {"teacher": "teacher"}
    assert parents(evaluations["control"]) == {"model": "control", "teacher": "teacher"}
    assert set(evaluations) == {*models_of(make_workspace(), 0), "pixels"}
    assert all(stage.config["labels"] for stage in evaluations.values())


def test_data_without_labels_is_measured_and_never_probed(make_workspace):
    workspace = make_workspace("evaluate.pixels=true", has_labels=False)
    evaluations = evaluations_of(workspace, 0)
    assert "pixels" not in evaluations
    assert not any(stage.config["labels"] for stage in evaluations.values())


def test_every_model_of_a_seed_is_timed_together(make_workspace):
    stage = latency_stage(make_workspace(), 1)
    assert set(stage.parents) == set(models_of(make_workspace(), 1))
    assert {parent.seed for parent in stage.parents.values()} == {1}


def test_views_are_the_datas_own_unless_named(models):
    own = models()["teacher"].config["views"]
    named = models("pretrain.views=[simclr,weak]")["teacher"].config["views"]
    assert len(own) == len(named) == 2
    assert own[0] == own[1] and own[0] not in named


def test_an_unknown_recipe_is_refused_with_the_nearest(models):
    with pytest.raises(UserError, match=r"unknown recipe 'wek' \(did you mean 'weak'\?\)"):
        models("pretrain.views=[wek, weak]")


@pytest.mark.parametrize("recipes", ["[weak]", "[weak,weak,weak]"])
def test_a_method_of_two_views_refuses_another_number_of_recipes(models, recipes):
    with pytest.raises(UserError, match="views"):
        models(f"pretrain.views={recipes}")


def test_compared_students_differ_from_the_distilled_one_by_their_losses_alone(models):
    found = models(
        "compare={simreg: {losses: {a: {kind: simreg}}}, longer: {steps: 9}}", "seeds=[0]"
    )
    roles = list(found)
    assert roles[roles.index("control") + 1 : roles.index("pruned")] == [
        "simreg",
        "longer",
        "distilled",
    ]
    assert found["simreg"].parents["teacher"] == found["distilled"].parents["teacher"]
    ours, theirs = (found[role].config for role in ("simreg", "distilled"))
    assert ours["encoder"] == theirs["encoder"]
    assert {k for k in theirs["training"] if ours["training"][k] != theirs["training"][k]} == {
        "losses"
    }
    assert found["longer"].config["training"]["steps"] == 9
    weights = [fresh_encoder(found[role]).state_dict() for role in ("simreg", "distilled")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_compared_student_is_compressed_by_nobody(models):
    found = models("compare={other: {steps: 9}}")
    assert found["pruned"].parents["model"] == found["distilled"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.views=[weak]", "distill.views: the losses take 2 views, got 1"),
        ("compare={other: {views: [weak]}}", "compare.other.views: the losses take 2 views"),
        (
            "distill.losses.feature.pairs=[[0,5]]",
            r"distill.losses.feature.pairs: \[0, 5\]: no view 5; views are 0 to 1",
        ),
    ],
)
def test_views_that_do_not_serve_the_losses_are_refused(models, override, message):
    with pytest.raises(UserError, match=message):
        models(override)
