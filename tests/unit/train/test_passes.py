"""Accumulated gradients are those of the whole batch, and a step remains one step."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.mae import MAE
from ssdistill.pretrain.simclr import SimCLR
from ssdistill.pretrain.simsiam import SimSiam, SimSiamPredictor, SimSiamProjector
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.gradients import SharedLayer
from ssdistill.train.loop import Training, fit
from ssdistill.train.optim import OptimSettings
from ssdistill.train.passes import Passes
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

COUNT = 12


def transformer():
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)


def simsiam():
    projector = SimSiamProjector(hidden_dim=16, output_dim=8, batch_norm="none")
    predictor = SimSiamPredictor(hidden_dim=16, batch_norm="none")
    return SimSiam(transformer(), projector=projector, predictor=predictor).train()


def mae():
    return MAE(transformer(), decoder_dim=16, decoder_depth=1, decoder_heads=2).train()


class Two(Task):
    """Two means over images, of different weights, one of an early layer alone."""

    def __init__(self):
        super().__init__()
        self.encoder, self.num_views = transformer(), 1
        self.after = []

    def weights_at(self, step, num_steps):
        return {"early": 2.0, "late": 0.5}

    def forward(self, views, batch):
        z_BD = self.encoder(views[0]).embedding_BD
        self.last_embeddings = [z_BD.detach()]
        patches_BPD = self.encoder.net.patch_embed(views[0])
        return {"early": patches_BPD.square().mean(), "late": z_BD.square().mean()}

    def after_step(self, step, num_steps):
        self.after.append(step)


def passes_of(task, **cut):
    fabric = Fabric(accelerator="cpu", devices=1)
    cut = {"microbatch": None, "accumulate": 1, **cut}
    training = SimpleNamespace(task=task, loader=SimpleNamespace(batch_size=COUNT), **cut)
    return Passes(training, fabric.setup(task), fabric)


def run(task, shared=False, **cut):
    """Losses, norms at the shared layer, gradients and embeddings of a copy of the task."""
    task = copy.deepcopy(task)
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(COUNT, 3, 16, 16, generator=generator) for _ in range(task.num_views)]
    batch = Batch(torch.zeros(COUNT, 1, 1, 3), torch.arange(COUNT), 0, 1, 10)
    layer = SharedLayer(task.encoder) if shared else None
    losses, pulls = passes_of(task, **cut)(views, batch, task.weights_at(1, 10), layer)
    gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    return losses, pulls, gradients, dict(enumerate(task.last_embeddings))


@pytest.mark.parametrize("cut", [{"accumulate": 3}, {"accumulate": 5, "microbatch": 2}], ids=str)
@pytest.mark.parametrize("make", [simsiam, mae, Two])
def test_accumulated_gradients_are_those_of_the_whole_batch(make, cut):
    task = make()
    expected = run(task, shared=True)
    assert expected[1]  # something was measured
    for found, wanted in zip(run(task, shared=True, **cut), expected, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name].shape == value.shape
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


def test_a_loss_that_compares_images_is_refused_with_the_remedy():
    task = SimCLR(transformer())
    with pytest.raises(UserError) as error:
        passes_of(task, accumulate=5)
    assert str(error.value) == (
        "accumulate=5: not a mean over images: simclr; set accumulate=1 and microbatch=3, which "
        "is exact for every loss"
    )
    passes_of(task, microbatch=3)
    with pytest.raises(UserError, match="set accumulate=1 and keep microbatch=2"):
        passes_of(task, accumulate=5, microbatch=2)


@pytest.fixture
def trained(make_store, tmp_path):
    """``trained(accumulate=…)``: a task after four steps, and its record."""

    def trained(**cut):
        task, folder = Two(), tmp_path / str(cut)
        loader = Loader(make_store(), 8, seed=1, num_steps=4)
        optim = OptimSettings(kind="sgd", lr=0.05, clip_grad_norm=0.5)
        training = Training(task, loader, (RECIPES["weak"],), optim, seed=2, **cut)
        run = Run(folder, stage="pretrain", digest="d" * 64, seed=0)
        settings = TrackingSettings(wandb="disabled", log_every=1, gradients_every=2)
        with Tracker(run, settings) as tracker:
            fit(training, Fabric(accelerator="cpu", devices=1), tracker)
        return task, read_metrics(folder)

    return trained


def test_a_training_logs_and_steps_as_with_the_whole_batch(trained):
    (whole, expected), (parts, found) = trained(), trained(accumulate=3)
    assert parts.after == whole.after == [0, 1, 2, 3]
    assert len(found) == len(expected)
    for line, wanted in zip(found, expected, strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            if not name.startswith("time/"):
                assert line[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


def test_settings_that_cut_nothing_are_left_out_of_what_is_hashed():
    plain = TrainSettings(steps=1)
    assert not {"microbatch", "accumulate"} & set(plain.model_dump(mode="json"))
    cut = TrainSettings(steps=1, microbatch=32, accumulate=2).model_dump(mode="json")
    assert (cut["microbatch"], cut["accumulate"]) == (32, 2)
    assert TrainSettings(steps=1, microbatch=None, accumulate=1) == plain


def test_more_parts_than_images_are_refused():
    with pytest.raises(ValueError, match="accumulate=9 exceeds batch_size=8; lower it"):
        TrainSettings(steps=1, batch_size=8, accumulate=9)


def test_a_weight_that_no_part_reaches_has_no_gradient():
    task = Two()
    task.unused = nn.Linear(2, 2)
    passes_of(task, accumulate=2)(
        [torch.rand(COUNT, 3, 16, 16)],
        Batch(torch.zeros(COUNT, 1, 1, 3), torch.arange(COUNT), 0, 1, 10),
        {"early": 1.0, "late": 1.0},
    )
    assert task.unused.weight.grad is None
