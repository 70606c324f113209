import os
import signal
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ssdistill.chain import checks, run, trial_step
from ssdistill.chain.checks import check_trainings
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.requirements import check_runtimes, check_steps
from ssdistill.chain.workspace import Workspace
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.trial import COMPUTED_SIDE, check_encodes
from ssdistill.settings.registry import SOURCES

TINY = """
schema: 1
name: tiny
data: digits
student: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
teacher: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 24, 24, 24], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 9, batch_size: 8}
distill:
  steps: 6
  batch_size: 8
  losses: {feature: {kind: simreg}}
"""


@pytest.fixture
def check(tmp_path, make_store):
    def check(*overrides, finished=()):
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY)
        experiment, _ = load_experiment(path, list(overrides))
        source = SOURCES.build(experiment.data)
        check_steps(experiment)
        check_runtimes(experiment)
        workspace = Workspace(experiment, tmp_path, source, make_store(), make_store())
        return check_trainings(workspace, finished)

    return check


def test_losses_that_fit_pass(check):
    assert check("distill.losses.queue={kind: seed, read: projection}") == []
    assert check("distill=null") == []


def test_a_queue_of_more_keys_than_images_is_noticed(check):
    (notice,) = check("distill.losses.queue={kind: seed, queue: 5000}")
    assert notice.startswith("distill.losses.queue.queue=5000 exceeds the ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "distill.losses.maps={kind: fitnet, maps: [layer9]}",
            r"^distill\.losses\.maps: fitnet: the student \(resnet10t\) has no map 'layer9'",
        ),
        (
            "compare={other: {losses: {a: {kind: attndistill}}}}",
            r"^compare\.other\.losses\.a: attndistill: the student \(resnet10t\) has no ",
        ),
        (
            "distill.interpolate={at_least: 0.9}",
            r"^distill\.interpolate: .*match a teacher tensor by name and shape",
        ),
        (
            "distill={mix: {kind: mixup}, losses: {bag: {kind: bingo}}}",
            r"^distill\.mix: mixed images have no neighbors, which a loss reads ",
        ),
    ],
)
def test_what_the_networks_cannot_serve_is_told_before_any_training(check, override, message):
    with pytest.raises(UserError, match=message):
        check(override)


@pytest.mark.parametrize(
    "override",
    [
        "distill={mix: {kind: mixup}, losses: {a: {kind: simreg}}}",
        "distill.losses={a: {kind: bingo}}",
    ],
)
def test_mixtures_and_neighbors_pass_each_alone(check, override):
    assert check(override) == []


VIT = "{name: vit_tiny_patch16_224, args: {img_size: 16, patch_size: 8, depth: 1"
SMALL = "distill.views=[weak, {recipe: weak, size: 8}]"


def test_small_crops_need_a_transformer_that_takes_them(check):
    check(SMALL, f"student.encoder={VIT}, dynamic_img_size: true}}}}")
    with pytest.raises(
        UserError, match=r"distill\.views: vit_.* 8 pixels .*student\.encoder\.args"
    ):
        check(SMALL, f"student.encoder={VIT}}}}}")


def test_a_step_that_cannot_be_built_is_named_before_anything_is_trained(check):
    with pytest.raises(UserError, match=r"compress\.0: prune: set exactly one of ratio, macs"):
        check("compress=[{kind: prune, ratio: 0.5, macs: 0.5}]")
    with pytest.raises(UserError, match=r"plans\.a\.1: zeros: set exactly one of sparsity"):
        check("plans={a: [{kind: share}, {kind: zeros, sparsity: 0.5, threshold: 0.1}]}")


def test_a_runtime_that_is_missing_is_named_before_anything_is_trained(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"compress\.0: openvino requires openvino .*\[openvino\]"):
        check("compress=[{kind: quantize, runtime: openvino}]")


def test_a_run_with_nothing_left_to_do_needs_no_runtime(make_workspace, monkeypatch):
    workspace = make_workspace("compress=[{kind: quantize, runtime: openvino}]")
    stages = plan_stages(workspace)
    monkeypatch.setitem(sys.modules, "openvino", None)
    run._notices(workspace, [run.PlannedStage(stage, "finished") for stage in stages])
    with pytest.raises(UserError, match=r"compress\.0: openvino requires"):
        run._notices(workspace, [run.PlannedStage(stage, "missing") for stage in stages])


@pytest.mark.parametrize("kind", ["byol", "simsiam", "vicreg", "barlow_twins", "nnclr", "moco_v3"])
def test_batch_statistics_of_a_single_image_are_refused_before_training(check, kind):
    small = "pretrain.projector={hidden_dim: 16, output_dim: 16}"
    override = f"pretrain={{kind: {kind}, steps: 1, batch_size: 1}}"
    with pytest.raises(
        UserError, match=r"^pretrain\.batch_size=1: batch statistics require at least 2"
    ):
        check(override, small)
    check(f"pretrain={{kind: {kind}, steps: 1, batch_size: 2}}", small)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("{kind: cassle}", r"^compare\.a\.batch_size=1: batch statistics require at least 2"),
        ("{kind: kd}", r"^compare\.a\.batch_size=1: the loss 'a' compares the images of a batch"),
        ("{kind: dkd}", r"^compare\.a\.batch_size=1: the loss 'a' compares the images of a batch"),
    ],
)
def test_a_loss_that_compares_images_needs_some(check, loss, message):
    losses = f"compare={{a: {{losses: {{a: {loss}}}, batch_size: BATCH}}}}"
    with pytest.raises(UserError, match=message):
        check(losses.replace("BATCH", "1"))
    check(losses.replace("BATCH", "2"))


def test_one_image_is_enough_where_images_are_not_compared(check):
    check("distill.losses.feature={kind: mse}", "distill.batch_size=1", "pretrain.batch_size=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pretrain.projector.hidden_dim=1000000000000",
            r"^pretrain: the network with its heads and queues needs more",
        ),
        (
            "distill.losses.a={kind: seed, queue: 100000000000}",
            r"^distill\.losses\.a: the network with its heads and queues needs",
        ),
        ("distill.views=[{recipe: weak, size: 100000}]", r"^distill\.views: .* choose a smaller"),
        ("distill.views=[{recipe: weak, count: 1000000000}]", r"use at most 100$"),
        ("pretrain.views=[{recipe: weak, count: 101}, weak]", r"102 views of each image"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_made(check, override, message):
    with pytest.raises(UserError, match=message):
        check(override)


def test_a_loss_on_maps_of_a_network_without_any_is_refused(check):
    with pytest.raises(UserError, match=r"^distill\.losses\.a: .*no"):
        check("distill.losses.a={kind: attndistill}")


@pytest.mark.parametrize("key", ["compress", "plans.a"])
def test_a_recovery_from_single_images_is_refused_where_its_losses_compare_images(check, key):
    steps = "[{kind: prune, ratio: 0.5}, {kind: recover, steps: 1, batch_size: BATCH}]"
    with pytest.raises(UserError, match=rf"^{key}\.1\.batch_size=1: batch statistics require"):
        check(f"{key}={steps.replace('BATCH', '1')}")
    check(f"{key}={steps.replace('BATCH', '2')}")


@pytest.fixture
def tried(monkeypatch):
    """The keys of the trainings of which a step was tried."""
    keys = []
    monkeypatch.setattr(checks, "check_step", lambda *args: keys.append(args[5]) or [])
    return keys


def test_a_finished_training_is_not_tried(check, tried):
    rows = "compare={sparse: {losses: {a: {kind: seed}}}, distillery: {losses: {a: {kind: kd}}}}"
    assert check(rows) == []
    assert tried == ["pretrain", "distill", "compare.sparse", "compare.distillery"]
    tried.clear()
    check(rows, finished={"distilled", "sparse"})
    assert tried == ["pretrain", "compare.distillery"]
    tried.clear()
    check(rows, finished={"teacher", "distillery"})
    assert tried == ["distill", "compare.sparse"]


@pytest.fixture
def computed(monkeypatch):
    """Sides of the images that a convolution computed, not only followed the shapes of."""
    sides, forward = [], nn.Conv2d.forward

    def look(module, x_BCHW):
        if not isinstance(x_BCHW, FakeTensor) and not x_BCHW.is_meta:
            sides.append(x_BCHW.shape[-1])
        return forward(module, x_BCHW)

    monkeypatch.setattr(nn.Conv2d, "forward", look)
    return sides


def test_large_images_are_followed_and_not_computed(check, computed):
    check("teacher.encoder.input_size=4096", "student.encoder.input_size=2048")
    assert max(computed) <= COMPUTED_SIDE


def test_images_of_ordinary_size_are_computed(check, computed):
    check("teacher.encoder.input_size=96")
    assert max(computed) == 96


def test_what_is_wrong_with_a_large_network_is_still_refused(check):
    with pytest.raises(UserError, match=r"resnet10t.*has no map 'layer9'"):
        check("teacher.encoder.input_size=4096", "distill.losses.m={kind: fitnet, maps: [layer9]}")


def test_a_large_image_that_a_network_cannot_take_is_refused_without_computing_it():
    args = {"img_size": 1024, "depth": 1}
    encoder = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 1024)
    encoder.net.pos_embed = nn.Parameter(torch.zeros(1, 10, 192))
    with pytest.raises(UserError, match=r"cannot encode images of 1024 pixels"):
        check_encodes(encoder, 1024)


def test_a_large_step_that_cannot_be_followed_is_noticed(check, monkeypatch):
    reason = RuntimeError("depends on a number")
    monkeypatch.setattr(trial_step, "_failure_without_memory", lambda *_: reason)
    monkeypatch.setattr(trial_step, "CHEAP_PIXELS", 1)
    notices = check()
    assert [notice.split(":")[0] for notice in notices] == ["pretrain", "distill"]
    assert all(
        "skipped the trial step: " in notice and " pixels take too long" in notice
        for notice in notices
    )


def test_a_step_through_very_many_layers_is_noticed_and_not_tried(check, monkeypatch):
    monkeypatch.setattr(trial_step, "MOST_LAYERS", 10)
    monkeypatch.setattr(trial_step, "_failure_without_memory", lambda *_: pytest.fail("tried"))
    for notice in check():
        assert "skipped the trial step: " in notice and " layers take too long" in notice
    assert [notice.split(":")[0] for notice in check()] == ["pretrain", "distill"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "distill.losses.queue={kind: seed}",
            r"^distill\.accumulate=2: not a mean over images: losses\.queue; set accumulate=1 and "
            "microbatch=4, which is exact for every loss$",
        ),
        ("pretrain.accumulate=2", r"^pretrain\.accumulate=2: not a mean over images: simclr; set "),
        (
            "distill.accumulate=8",
            r"^distill\.accumulate=8: batch statistics require at least 2 images; lower accumulate",
        ),
        (
            "distill.microbatch=1",
            r"^distill\.microbatch=1: batch statistics require at least 2 images; set a larger "
            "microbatch",
        ),
    ],
)
def test_batches_cut_too_finely_or_at_the_wrong_place_are_refused(check, change, message):
    # Maps of one position: their batch norms need two images.
    views = "distill.views=[{recipe: weak, size: 2}]" if "microbatch=1" in change else "seeds=[0]"
    assert check("distill.accumulate=2", "distill.microbatch=2", views) == []
    with pytest.raises(UserError, match=message):
        check("distill.accumulate=2", change, views)


def test_ctrl_c_waits_for_the_end_of_a_step_that_is_followed(check, monkeypatch):
    """An interrupt inside of an operation on tensors without numbers would end the process."""
    ended = []

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(sum(range(100_000)))  # long enough for a signal to arrive

    monkeypatch.setattr(trial_step, "_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check()
    assert len(ended) == 1
