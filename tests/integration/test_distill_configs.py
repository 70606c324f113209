"""Every loss's config trains on digits, through the stages that a user runs."""

from pathlib import Path

import pytest

from ssdistill.artifacts.artifact import load
from ssdistill.chain.plan import models_of
from ssdistill.chain.recording import execute
from ssdistill.chain.run import BODIES
from ssdistill.chain.stages import Identity
from ssdistill.chain.workspace import MODEL, open_workspace
from ssdistill.experiment.reading import load_experiment
from ssdistill.record.run import read_metrics
from ssdistill.settings.registry import LOSSES

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "distill"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
VARIANTS = {"lightly_v1": "lightly", "dinov3": "ibot"}
"""Configs that are called after a method of which the loss is one setting."""
QUICK = [
    "pretrain.steps=2",
    "pretrain.batch_size=32",
    "distill.epochs=null",
    "distill.steps=3",
    "distill.batch_size=32",
    "evaluate=null",
    "device.precision=fp32",
    "device.memory_format=contiguous",
    "tracking.wandb=disabled",
    "tracking.log_every=1",
    "tracking.gradients_every=1",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One runs folder: the teacher is trained once."""
    return tmp_path_factory.mktemp("runs")


def test_every_loss_has_a_config():
    assert set(NAMES) - set(VARIANTS) == set(LOSSES.classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_a_loss_trains_on_digits(name, root):
    experiment, notices = load_experiment(FOLDER / f"{name}.yaml", QUICK)
    assert notices == []
    assert VARIANTS.get(name, name) in {loss.kind for loss in experiment.distill.losses.values()}
    workspace = open_workspace(experiment, root)
    models, identity = models_of(workspace, 0), Identity.of(experiment)
    for role in ("teacher", "distilled"):
        stage = models[role]
        if stage.status(root) != "finished":
            body = lambda stage, tracker: BODIES[stage.kind](stage, workspace, tracker)  # noqa: E731
            execute(stage, root, body, identity, experiment.tracking)
    lines = read_metrics(stage.folder(root))
    assert [line["step"] for line in lines] == [0, 1, 2]
    for name in experiment.distill.losses:
        assert all(abs(line[f"loss/{name}"]) < float("inf") for line in lines)
        assert lines[0][f"grad/{name}"] > 0
    fresh = workspace.build(experiment.student.encoder)
    assert load(stage.folder(root) / MODEL).embed_dim == fresh.embed_dim
