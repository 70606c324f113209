"""What stages share: embeddings by weights and images, and images by seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.chain.plan import models_of
from ssdistill.chain.requirements import check_batches
from ssdistill.chain.workspace import open_workspace
from ssdistill.data.views import eval_view
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment


def other_images(workspace):
    store = workspace.train
    images = 255 - store.images
    return type(store)(**{**vars(store), "images": images, "fingerprint": "a" * 64})


def test_embeddings_belong_to_the_weights_and_to_the_images(make_workspace, make_encoder):
    workspace, encoder = make_workspace(), make_encoder(0)
    first_ND = workspace.embeddings(encoder)
    twin = replace(workspace, train=other_images(workspace))
    assert not torch.allclose(twin.embeddings(encoder), first_ND)
    assert not torch.allclose(workspace.embeddings(make_encoder(1)), first_ND)
    assert len(list((workspace.root / "embeddings").iterdir())) == 3


def test_embeddings_are_those_of_the_evaluation_views_and_kept(make_workspace, make_encoder):
    workspace, encoder = make_workspace(), make_encoder(0).eval()
    found_ND = workspace.embeddings(encoder)
    with torch.no_grad():
        views_BCHW = eval_view(torch.from_numpy(workspace.train.images), 16)
        assert torch.allclose(found_ND, encoder(views_BCHW).embedding_BD, atol=1e-5)
    (path,) = (workspace.root / "embeddings").iterdir()
    np.save(path, np.ones((24, 16), np.float32))
    assert (workspace.embeddings(encoder) == 1).all()


def test_another_architecture_of_equal_weights_has_embeddings_of_its_own(
    make_workspace, make_encoder
):
    workspace, encoder = make_workspace(), make_encoder(0)
    workspace.embeddings(encoder)
    encoder.spec = encoder.spec.model_copy(update={"mean": (0.1, 0.2, 0.3)})
    workspace.embeddings(encoder)
    assert len(list((workspace.root / "embeddings").iterdir())) == 2


def test_images_follow_their_seed_and_are_distinct(make_workspace):
    workspace = make_workspace()
    first, again, other = (workspace.images(8, seed) for seed in (0, 0, 1))
    assert first.shape == (8, 3, 16, 16)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(torch.unique(first.flatten(1), dim=0)) == 8
    assert len(workspace.images(99, 0)) == len(workspace.train) == 24
    all_BCHW = eval_view(torch.from_numpy(workspace.train.images), 16)
    assert torch.equal(workspace.images(24, 3), all_BCHW)


def test_stages_know_the_size_and_the_statistics_of_the_training_images(make_workspace):
    workspace = make_workspace()
    pictures = workspace.image_spec
    assert (workspace.image_size, pictures.image_size) == (16, 16)
    assert (pictures.mean, pictures.std) == ((0.5,) * 3, (0.25,) * 3)
    built = workspace.build(workspace.experiment.student.encoder)
    assert (built.spec.mean, built.spec.std) == (pictures.mean, pictures.std)


def test_a_teacher_to_be_trained_is_looked_at_with_its_projector(make_workspace):
    (teacher,) = make_workspace().teachers().values()
    assert teacher.projector is not None
    assert teacher.projector(torch.zeros(2, teacher.embed_dim)).shape[0] == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("pretrain.batch_size=25", "pretrain"),
        ("teacher.pretrain={kind: simclr, batch_size: 25}", "teacher.pretrain"),
        ("distill.batch_size=25", "distill"),
        ("compress.1.batch_size=25", "compress.1"),
        ("compare={a: {steps: 1, batch_size: 25}}", "compare.a"),
        ("plans={p: [{kind: recover, batch_size: 25}]}", "plans.p.0"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused_by_its_key(make_workspace, change, key):
    workspace = make_workspace(change)
    with pytest.raises(UserError, match=rf"^{key}\.batch_size=25 exceeds the 24 training"):
        check_batches(workspace.experiment, 24)
    check_batches(workspace.experiment, 256)


def test_the_weights_of_an_encoder_come_from_its_stage(make_workspace, make_encoder):
    workspace = make_workspace()
    stage = models_of(workspace, 0)["untrained"]
    encoder = make_encoder(3)
    save_encoder(encoder, stage.folder(workspace.root) / "model")
    found = workspace.encoder(stage)
    assert not found.training
    assert torch.equal(found.net.layer1[0].conv1.weight, encoder.net.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    ("classes", "labels", "warned"),
    [(("cats",), False, True), (("cats", "dogs"), True, False), (("",), False, False)],
)
def test_one_class_is_told_aloud_and_taken_for_no_labels(tmp_path, classes, labels, warned):
    photos = tmp_path / "photos"
    for number in range(12):
        path = photos / classes[number % len(classes)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)
    path = tmp_path / "one.yaml"
    path.write_text(
        f"schema: 1\nname: one\ndata: {{kind: folder, path: {photos}, image_size: 8}}\n"
        "teacher: {encoder: {name: resnet10t, stem: small}}\n"
        "pretrain: {kind: simclr, steps: 1, batch_size: 4}\n"
    )
    workspace = open_workspace(load_experiment(path)[0], tmp_path / "runs")
    assert len(workspace.train) + len(workspace.test) == 12
    assert workspace.source.has_labels == labels
    assert any("one class only (cats)" in line for line in workspace.warnings) == warned


def test_a_runs_folder_that_is_a_file_is_refused(tmp_path):
    experiment, _ = load_experiment("quickstart", [])
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"--runs .*runs: is a file; pass a folder"):
        open_workspace(experiment, tmp_path / "runs")


def test_what_wandb_lacks_is_said_before_the_data_is_read(tmp_path, monkeypatch):
    experiment, _ = load_experiment("quickstart", [])
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UserError, match="WANDB_MODE=nonsense"):
        open_workspace(experiment, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
