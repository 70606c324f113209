import json

import pytest

from ssdistill.chain.grouping import experiment_columns, stage_columns
from ssdistill.chain.plan import evaluations_of, latency_stage, models_of
from ssdistill.chain.stages import Identity
from ssdistill.record.run_record import RunRecord, kind_of
from ssdistill.record.wandb_logger import logged_config, run_name

RIVALS = "compare={seed: {losses: {seed: {kind: seed}}}, rkd: {losses: {rkd: {kind: rkd}}}}"


def all_stages(workspace, seeds=(0, 1)):
    for seed in seeds:
        yield from models_of(workspace, seed).values()
        yield from evaluations_of(workspace, seed).values()
        yield latency_stage(workspace, seed)


def record_of(stage, workspace):
    return RunRecord(
        stage=stage.kind,
        kind=kind_of(stage.config),
        role=stage.role,
        digest=stage.digest,
        seed=stage.seed,
        config=stage.config,
        columns={**experiment_columns(workspace.experiment), **stage_columns(stage)},
    )


def test_every_run_of_an_experiment_has_a_name_of_its_own(make_workspace):
    workspace = make_workspace(RIVALS, "plans={half: [{kind: prune, ratio: 0.5}]}")
    stages = {(s.digest, s.seed): s for s in all_stages(workspace)}.values()
    names = [run_name(record_of(stage, workspace)) for stage in stages]
    assert len(set(names)) == len(names) > 30
    assert {
        "teacher/simclr/s0",
        "distilled/simreg+infonce/s1",
        "seed/s0",  # row and loss of one name
        "rkd/evaluate/s0",
        "distilled/simreg+infonce/evaluate/s0",
        "int8/simreg+infonce/s0",
        "untrained/s0",
        "latency/s1",
    } <= set(names)


def test_columns_say_what_a_model_is_made_by_and_from(make_workspace):
    workspace = make_workspace(RIVALS)
    models, evaluations = models_of(workspace, 1), evaluations_of(workspace, 1)
    for stage in (models["distilled"], evaluations["distilled"]):
        columns = stage_columns(stage)
        assert (columns["row"], columns["seed"]) == ("distilled", 1)
        assert columns["losses"] == "simreg+infonce" and "steps" not in columns
    assert stage_columns(evaluations["rkd"])["losses"] == "rkd"
    for stage in (models["int8"], evaluations["int8"]):
        columns = stage_columns(stage)
        assert columns["steps"] == "prune+recover+quantize"
        assert columns["losses"] == "simreg+infonce"
    assert stage_columns(models["teacher"])["method"] == "simclr"
    assert "losses" not in stage_columns(models["teacher"])
    assert set(stage_columns(latency_stage(workspace, 0))) == {"row", "stage", "seed"}


@pytest.mark.parametrize(
    "overrides, teacher",
    [
        ([], "simclr:resnet10t"),
        (["pretrain.kind=byol"], "byol:resnet10t"),
        (["teacher={kind: timm, name: vit_tiny}"], "timm:vit_tiny"),
        (
            ["teachers={a: {encoder: {name: resnet18}}, b: {kind: torchvision, name: resnet50}}"],
            "simclr:resnet18+torchvision:resnet50",
        ),
    ],
)
def test_the_teacher_is_named_with_its_origin(make_workspace, overrides, teacher):
    workspace = make_workspace(*overrides, teacher="teachers" not in "".join(overrides))
    columns = experiment_columns(workspace.experiment)
    assert columns == {"experiment": "tiny", "teacher": teacher, "student": "resnet10t"}


def test_columns_are_flat_and_hide_no_setting(make_workspace):
    workspace = make_workspace()
    stage = models_of(workspace, 0)["distilled"]
    config = logged_config(record_of(stage, workspace))
    flat = {k: config[k] for k in ("losses", "teacher", "student", "seed", "row", "stage")}
    assert all(isinstance(value, str | int) for value in flat.values())
    assert config["training"]["losses"]["feature"]["kind"] == "simreg"
    record = record_of(stage, workspace)
    loaded = RunRecord(**{**vars(record), "stage": "load", "config": {"teacher": {"kind": "timm"}}})
    config = logged_config(loaded)
    assert config["teacher"] == "simclr:resnet10t"
    assert config["teacher_settings"] == {"kind": "timm"}
    json.dumps(config)


@pytest.mark.parametrize(
    "override, same",
    [
        ("seeds=[7]", True),
        ("seeds=[0, 1, 2, 3]", True),
        ("tracking.project=x", True),
        ("device.threads=1", True),
        ("distill.steps=7", False),
        ("name=other", False),
    ],
)
def test_the_group_of_an_experiment_changes_with_all_but_its_seeds(make_workspace, override, same):
    before, after = (Identity.of(make_workspace(*o).experiment) for o in ([], [override]))
    assert (before.group == after.group) == same
    assert before.group.startswith("tiny-")


def test_the_folder_of_an_experiment_is_its_own_for_other_seeds(make_workspace):
    before, after = (Identity.of(make_workspace(*o).experiment) for o in ([], ["seeds=[7]"]))
    assert before.folder != after.folder and before.folder == f"tiny-{before.digest[:8]}"
