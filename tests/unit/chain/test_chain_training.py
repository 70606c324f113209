"""What training stages take from their settings: seeds, images, teachers, losses, time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.chain import compression
from ssdistill.chain import training as training_module
from ssdistill.chain.compression import _context, _Training
from ssdistill.chain.plan import evaluations_of, latency_stage, models_of
from ssdistill.chain.tasks import assemble, build_distiller, fresh_encoder, task_of
from ssdistill.chain.training import prepare, train
from ssdistill.chain.workspace import MODEL
from ssdistill.experiment.sections import DistillSettings
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.settings import TrainSettings

FIXED = "device={precision: fp32, memory_format: contiguous, accelerator: cpu}"
TWO_LOSSES = {
    "losses": {
        "near": {"kind": "simreg", "teacher": "near"},
        "far": {"kind": "simreg", "teacher": "far"},
    }
}


@pytest.fixture
def prepared(make_workspace):
    """``prepared(role, seed, order)``: the training of one stage."""
    workspace = make_workspace(FIXED)

    def make(role="teacher", seed=0, order="order"):
        stage = models_of(workspace, seed)[role]
        task, settings = task_of(stage, workspace)
        return prepare(task, settings, stage, workspace, order=order)[0]

    return make


@pytest.fixture
def tracker(tmp_path):
    facts = {"digest": "d" * 64, "seed": 0, "name": "tiny", "group": "tiny", "profile": "smoke"}
    facts |= {"fingerprint": "f" * 64, "parents": {}, "config": {}}
    run = Run(tmp_path / "run", stage="pretrain", kind="teacher", **facts)
    with Tracker(run, TrackingSettings(wandb="disabled")) as tracker:
        yield tracker


def first_rows(training):
    return training.loader.batch(0).index_B.tolist()


def test_another_seed_draws_other_views_in_another_order(prepared):
    first, again, other = prepared(seed=0), prepared(seed=0), prepared(seed=1)
    assert first.seed == again.seed != other.seed
    assert first.loader.seed == again.loader.seed != other.loader.seed
    assert first_rows(first) == first_rows(again) != first_rows(other)
    views = [t.views(t.loader.batch(0))[0] for t in (first, again)]
    assert torch.equal(*views)


def test_the_order_of_the_images_follows_its_name_and_the_seed(prepared):
    orders = [
        first_rows(prepared(seed=seed, order=order)) for seed in (0, 1) for order in ("order", "b")
    ]
    assert len({tuple(rows) for rows in orders}) == 4


def test_views_and_order_of_one_seed_do_not_share_their_numbers(prepared):
    training = prepared()
    assert training.seed != training.loader.seed


def test_a_training_has_the_length_views_and_optimizer_of_its_stage(make_workspace):
    workspace = make_workspace(FIXED)
    stage = models_of(workspace, 0)["teacher"]
    task, settings = task_of(stage, workspace)
    training, _ = prepare(task, settings, stage, workspace)
    assert training.loader.num_steps == 9 and training.loader.batch_size == 8
    assert training.optim == settings.optim and training.mix is None
    assert len(training.recipes) == len(stage.config["views"]) == 2
    assert prepare(task, settings, stage, workspace, 4)[0].loader.num_steps == 4


def test_epochs_are_counted_in_whole_batches(make_workspace):
    workspace = make_workspace(FIXED, "pretrain={steps: null, epochs: 2, batch_size: 7}")
    stage = models_of(workspace, 0)["teacher"]
    task, settings = task_of(stage, workspace)
    # 24 images hold three batches of 7.
    assert prepare(task, settings, stage, workspace)[0].loader.num_steps == 6


def test_a_recovery_has_the_views_and_the_mixing_of_the_distillation(make_workspace):
    mix = "distill.mix={kind: mixup}"
    workspace = make_workspace(FIXED, mix, "distill.views=[weak, byol_b]")
    stage = models_of(workspace, 0)["recovered"]
    assert "views" not in stage.config
    encoder = fresh_encoder(models_of(workspace, 0)["untrained"])
    config = DistillSettings.model_validate(stage.config["distill"]["training"])
    teacher = fresh_encoder(models_of(workspace, 0)["untrained"])
    single = config.model_copy(update={"losses": {"feature": config.losses["feature"]}})
    distiller = build_distiller(encoder, {"teacher": teacher}, single, stage, workspace)
    settings = config.model_copy(update={"steps": 2})
    training, _ = prepare(distiller, settings, stage, workspace)
    assert training.mix is not None and training.mix.kind == "mixup"
    assert [r.model_dump(mode="json") for r in training.recipes] == stage.config["distill"]["views"]


def test_seconds_of_a_training_are_those_of_all_its_steps(make_workspace, tracker):
    workspace = make_workspace(FIXED, "pretrain={kind: simclr, steps: 3, batch_size: 8}")
    stage = models_of(workspace, 0)["teacher"]
    metrics = train(*task_of(stage, workspace), stage, workspace, tracker)
    assert metrics["train/steps"] == 3
    assert metrics["train/seconds"] == pytest.approx(3 * metrics["time/step_seconds"], rel=1e-9)
    assert (metrics["train/bf16"], metrics["train/channels_last"]) == (0, 0)


def test_the_shown_views_are_the_first_batch_and_padded_with_white(make_workspace, tracker):
    workspace = make_workspace(FIXED, "pretrain={kind: simclr, steps: 1, batch_size: 8}")
    stage = models_of(workspace, 0)["teacher"]
    train(*task_of(stage, workspace), stage, workspace, tracker)
    pictures = np.load(tracker.run.folder / training_module.VIEWS)
    assert pictures.shape == (2, 8, 16, 16, 3) and pictures.dtype == np.uint8
    training, _ = prepare(*task_of(stage, workspace), stage, workspace)
    expected_BCHW = training.views(training.loader.batch(0))[0][:8]
    expected = expected_BCHW.mul(255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pictures[0], expected)
    padded = training_module._first_images(torch.zeros(1, 3, 4, 4), 6, 6, workspace.train)
    assert padded.shape == (1, 6, 6, 3)
    assert (padded[:, :4, :4] == 0).all() and (padded[:, 4:] == 255).all()
    assert (padded[:, :, 4:] == 255).all()


def test_losses_of_one_of_several_teachers_leave_the_others_out(make_encoder):
    teachers = {"teacher_near": make_encoder(1), "teacher_far": make_encoder(2)}
    both = DistillSettings(steps=1, **TWO_LOSSES)
    assert assemble(make_encoder(), teachers, both, 24).teachers.keys() == {"near", "far"}
    one = both.model_copy(update={"losses": {"near": both.losses["near"]}})
    distiller = assemble(make_encoder(), teachers, one, 24)
    assert distiller.teachers == {"near": teachers["teacher_near"]}


def test_heads_follow_the_stage_whatever_was_drawn_before(make_workspace, make_encoder):
    workspace = make_workspace(FIXED)
    settings = DistillSettings(steps=1, losses={"feature": {"kind": "simreg"}})
    heads = []
    for seed, drawn in ((0, 0), (0, 5), (1, 0)):
        stage = models_of(workspace, seed)["distilled"]
        torch.rand(drawn)
        distiller = build_distiller(
            make_encoder(), {"teacher": make_encoder(1)}, settings, stage, workspace
        )
        heads.append(torch.cat([p.flatten() for p in distiller.losses.parameters()]))
        torch.manual_seed(100 + drawn)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_initial_weights_follow_the_seed_alone(make_workspace):
    workspace = make_workspace(FIXED)
    same = [fresh_encoder(models_of(workspace, 0)[role]) for role in ("untrained", "control")]
    other = fresh_encoder(models_of(workspace, 1)["untrained"])
    first, second, third = (e.net.layer1[0].conv1.weight for e in (*same, other))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_a_recovery_does_not_move_the_student_towards_the_teacher_again(make_workspace):
    workspace = make_workspace(FIXED, "distill.interpolate={alpha: 0.5}")
    stage = models_of(workspace, 0)["recovered"]
    assert stage.config["distill"]["training"]["interpolate"] is not None
    learner = _Training(stage, workspace, SimpleNamespace(), {})
    for targets in ({"teacher": None}, {"a": None, "b": None}):
        assert learner._settings(targets).interpolate is None


def test_a_step_has_a_folder_to_write_to_before_it_begins(make_workspace, make_encoder, tracker):
    workspace = make_workspace(FIXED)
    stage = models_of(workspace, 0)["recovered"]
    for parent in stage.parents.values():
        save_encoder(make_encoder(), parent.folder(workspace.root) / MODEL)
    context = _context(stage, workspace, tracker, False, {})
    assert context.folder.is_dir() and context.folder.parent == tracker.run.folder
    assert context.scratch == tracker.run.folder
    assert context.train is None and context.losses is None
    assert context.teachers.keys() == stage.parents.keys() - {"model", "before", "original"}


def test_one_target_is_what_every_loss_learns_from(make_workspace):
    workspace = make_workspace(FIXED)
    stage = models_of(workspace, 0)["recovered"]
    training = stage.config["distill"]["training"]
    training["losses"]["feature"]["teacher"] = "near"
    learner = _Training(stage, workspace, SimpleNamespace(), {})
    assert learner._settings({"original": None}).losses["feature"].teacher is None
    assert learner._settings({"near": None, "far": None}).losses["feature"].teacher == "near"


def test_saliencies_of_another_seed_see_other_batches(make_workspace, make_encoder):
    workspace = make_workspace(FIXED)
    stage = models_of(workspace, 0)["recovered"]
    learner = _Training(stage, workspace, SimpleNamespace(), {})
    found = [
        torch.stack([
            loss.detach()
            for loss in learner.losses(make_encoder(), {"teacher": make_encoder(1)}, 2, seed)
        ])
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert found[0].shape == (2,)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_an_evaluation_belongs_to_its_test_images(make_workspace):
    workspace = make_workspace()
    before = evaluations_of(workspace, 0)
    workspace.test.fingerprint = "9" * 64
    after = evaluations_of(workspace, 0)
    assert all(before[role].digest != after[role].digest for role in before)
    assert (
        models_of(workspace, 0)["distilled"].digest == before["distilled"].parents["model"].digest
    )


def test_only_a_control_of_measured_time_has_a_budget_in_its_config(make_workspace):
    stages = models_of(make_workspace("control.budgets=[steps, time]"), 0)
    assert "budget" not in stages["control"].config and not stages["control"].parents
    assert stages["control_time"].config["budget"] == "time"
    assert stages["control_time"].parents == {"distilled": stages["distilled"]}


def test_a_control_is_as_long_as_the_distillation_in_whole_batches(make_workspace):
    epochs = ("distill.steps=null", "distill.epochs=10", "distill.batch_size=7")
    stage = models_of(make_workspace(*epochs), 0)["control"]
    # 24 images are three batches of 7; three and three sevenths would be 34 steps.
    assert stage.config["method"]["steps"] == 30


def test_latencies_are_those_of_one_image_and_of_a_batch_of_64(make_workspace):
    assert latency_stage(make_workspace(), 0).config["batch_sizes"] == [1, 64]


def test_the_first_views_are_logged_as_one_image(make_workspace, tracker):
    seen = {}
    tracker.loggers.append(
        SimpleNamespace(
            name="seen",
            log=lambda *args: None,
            log_images=lambda step, images: seen.update(images, step=step),
            finish=lambda *args: None,
        )
    )
    workspace = make_workspace(FIXED, "pretrain={steps: 1, batch_size: 8}")
    stage = models_of(workspace, 0)["teacher"]
    train(*task_of(stage, workspace), stage, workspace, tracker)
    kept = np.load(tracker.run.folder / training_module.VIEWS)
    assert seen["step"] == 0 and seen["views"].shape == (8 * 16, 2 * 16, 3)
    for image in (0, 7):
        for view in (0, 1):
            rows, columns = slice(16 * image, 16 * image + 16), slice(16 * view, 16 * view + 16)
            assert np.array_equal(seen["views"][rows, columns], kept[view, image])


def test_neighbors_are_looked_for_where_a_loss_reads_them(make_workspace, make_encoder):
    workspace = make_workspace(FIXED)
    stage = models_of(workspace, 0)["distilled"]
    found = {}
    for kind in ("simreg", "bingo"):
        settings = DistillSettings(steps=1, losses={"a": {"kind": kind}})
        teacher = {"teacher": make_encoder(1)}
        distiller = build_distiller(make_encoder(), teacher, settings, stage, workspace)
        found[kind] = distiller.neighbors_NK
    assert found["simreg"] is None and len(found["bingo"]) == 24


def test_losses_are_fitted_to_the_teachers_embeddings(make_workspace, make_encoder):
    workspace, teacher = make_workspace(FIXED), make_encoder(1).eval()
    stage = models_of(workspace, 0)["distilled"]
    settings = DistillSettings(steps=1, losses={"a": {"kind": "kdep"}})
    distiller = build_distiller(make_encoder(), {"teacher": teacher}, settings, stage, workspace)
    seen = []
    loss = distiller.losses["a"]
    loss.fit_teacher = seen.append
    from ssdistill.chain.tasks import _initialize_losses

    _initialize_losses(teacher, [loss], workspace)
    (given,) = seen
    assert torch.equal(given.embedding_BD, workspace.embeddings(teacher))
    assert given.projection_BP is None
    teacher.projector = torch.nn.Linear(16, 5)
    _initialize_losses(teacher, [loss], workspace)
    expected = teacher.projector(given.embedding_BD)
    assert torch.allclose(seen[1].projection_BP, expected)


def test_as_many_images_are_shown_as_one_looks_at(make_store):
    shown = training_module._first_images(torch.zeros(40, 3, 4, 4), 6, 6, make_store())
    assert shown.shape == (training_module.SHOWN_IMAGES, 6, 6, 3)
    assert shown[:, :4, :4].max() == 0 and shown[:, 4:].min() == shown[:, :, 4:].min() == 255


@pytest.mark.parametrize(("parts", "expected"), [(4, 4), (8, 8)])
def test_a_recovery_cuts_its_batches_as_the_distillation_does(
    make_workspace, monkeypatch, parts, expected
):
    losses = "distill.losses={feature: {kind: simreg}}"
    workspace = make_workspace(FIXED, losses, f"distill.accumulate={parts}", "distill.microbatch=3")
    stage, seen = models_of(workspace, 0)["recovered"], []

    def train(task, training, *rest):
        seen.append(training)
        return {}

    monkeypatch.setattr(compression, "build_distiller", lambda *args: None)
    monkeypatch.setattr(compression, "train", train)
    training = TrainSettings(steps=1, batch_size=8)
    _Training(stage, workspace, SimpleNamespace(), {}).train(None, {"teacher": None}, training)
    assert (seen[0].microbatch, seen[0].accumulate) == (3, expected)
    assert seen[0].batch_size == 8


def test_a_stage_trains_with_the_cuts_of_its_settings(make_workspace, make_encoder):
    workspace = make_workspace(FIXED)
    stage = models_of(workspace, 0)["distilled"]
    for cut in ({}, {"microbatch": 3, "accumulate": 2}):
        settings = DistillSettings(steps=1, batch_size=8, losses={"a": {"kind": "simreg"}}, **cut)
        teacher = {"teacher": make_encoder(1)}
        task = build_distiller(make_encoder(), teacher, settings, stage, workspace)
        training, _ = prepare(task, settings, stage, workspace)
        expected = (cut.get("microbatch"), cut.get("accumulate", 1))
        assert (training.microbatch, training.accumulate) == expected
