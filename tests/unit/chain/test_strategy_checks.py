"""What is refused of ``device.strategy: fsdp``, and what settings of the device do not change."""

import pytest
import torch

from ssdistill.chain import strategy_checks
from ssdistill.chain.observers import observers_of
from ssdistill.chain.strategy_checks import check_strategy
from ssdistill.chain.tasks import task_of
from ssdistill.chain.training import prepare
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.train.watch import AgreementWatch

FSDP = (
    "device.strategy=fsdp",
    "device.accelerator=cpu",
    "device.devices=2",
    "device.precision=fp32",
    "device.memory_format=contiguous",
)


def test_what_can_be_sharded_is_accepted(make_workspace):
    check_strategy(make_workspace(*FSDP).experiment)
    check_strategy(make_workspace("device.accelerator=cpu").experiment)
    check_strategy(make_workspace(*FSDP, "distill.interpolate={when: before}").experiment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("device.devices=1", "fsdp shards teachers among processes; set device.devices, or set"),
        ("device.precision=auto", "device.precision=auto measures with whole teachers"),
        ("device.memory_format=auto", "device.memory_format=auto measures with whole teachers"),
        ("distill.interpolate={when: during}", "distill.interpolate.when=during reads whole"),
        ("compare.b={interpolate: {when: during}}", "compare.b.interpolate.when=during reads"),
    ],
)
def test_what_needs_a_whole_teacher_is_refused_in_one_line(make_workspace, change, message):
    with pytest.raises(UserError) as caught:
        check_strategy(make_workspace(*FSDP, change).experiment)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_shard_is_refused(make_workspace):
    nothing = ("distill=null", "compress=[]", "control=null")
    with pytest.raises(UserError, match="and nothing is distilled; set"):
        check_strategy(make_workspace(*FSDP, *nothing).experiment)


def test_a_device_that_cannot_shard_is_refused(make_workspace, monkeypatch):
    monkeypatch.setattr(strategy_checks, "device_of", lambda accelerator: torch.device("mps"))
    with pytest.raises(UserError, match="=fsdp is not available on 'mps'; set"):
        check_strategy(make_workspace(*FSDP).experiment)


SETTINGS = ("device.checkpoint_activations=true", *FSDP[:1])


def test_no_hash_depends_on_what_changes_no_result(models):
    plain = {role: stage.digest for role, stage in models(*FSDP[3:]).items()}
    changed = {role: stage.digest for role, stage in models(*FSDP[3:], *SETTINGS).items()}
    assert plain == changed
    half = models("device.precision=fp16", FSDP[4])
    half = {role: stage.digest for role, stage in half.items()}
    assert all(half[role] != plain[role] for role in ("teacher", "distilled"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_knows_its_strategy_and_what_reads_whole_teachers(
    make_workspace, models, monkeypatch, strategy
):
    overrides = (*FSDP[1:2], *FSDP[3:], f"device.strategy={strategy}", SETTINGS[0])
    overrides += ("distill.steps=200",)
    workspace = make_workspace(*overrides)
    stage = models(*overrides)["distilled"]
    monkeypatch.setattr(
        type(workspace), "encoder", lambda self, s: workspace.build(self.experiment.teacher.encoder)
    )
    task, settings = task_of(stage, workspace)
    assert all(isinstance(teacher, Encoder) for teacher in task.teachers.values())
    training, _ = prepare(task, settings, stage, workspace)
    assert training.strategy == strategy and training.checkpoint_activations
    alone, _ = prepare(task, settings, stage, workspace, shared_out=False)
    assert alone.strategy == "ddp"
    tracking, device = workspace.experiment.tracking, torch.device("cpu")
    observers = observers_of(training, settings, tracking, stage, workspace, device)
    watched = any(isinstance(observer, AgreementWatch) for observer in observers)
    assert watched == (strategy == "ddp")
