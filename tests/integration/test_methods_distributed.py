"""Pretraining on two processes with half a batch each equals one with the whole batch.

Without batch norm, which ``test_shared_training.py`` has.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import run_together
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain import Method
from ssdistill.settings.registry import METHODS

WORLD, BATCH, STEPS = 2, 8, 3
HEAD = {"hidden_dim": 16, "output_dim": 8, "batch_norm": "none"}
PREDICTOR = {"hidden_dim": 16, "batch_norm": "none"}
WIDTHS = {
    "simclr": {"projector": HEAD},
    "byol": {"projector": HEAD, "predictor": PREDICTOR},
    "moco": {"projector": HEAD, "queue": 32},
    "moco_v3": {"projector": HEAD, "predictor": PREDICTOR},
    "simsiam": {"projector": HEAD, "predictor": PREDICTOR},
    "nnclr": {"projector": HEAD, "predictor": PREDICTOR, "queue": 32},
    "barlow_twins": {"projector": HEAD},
    "vicreg": {"projector": HEAD},
    "swav": {"projector": HEAD, "num_prototypes": 12, "freeze_prototypes": 0.0},
    "dino": {"projector": HEAD, "num_prototypes": 12, "freeze_last": 0.0},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "autoencoder": {"decoder_width": 16},
}
KINDS = list(METHODS.classes)


def build(kind: str) -> Method:
    torch.manual_seed(3)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)
    settings = METHODS.schema(kind)(steps=STEPS, **WIDTHS.get(kind, {}))
    method = METHODS.build(settings, encoder).train()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):  # the autoencoder's decoder has some
            module.eval()
    return method


def train(kind: str, part: slice) -> dict[str, Tensor]:
    """Losses, gradients and the state after a few steps on ``part`` of every batch."""
    method, results = build(kind), {}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        views = [torch.rand(BATCH, 3, 16, 16, generator=generator) for _ in method.recipes]
        index_B = torch.arange(BATCH)[part]
        images = torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8)
        losses = method([v[part] for v in views], Batch(images, index_B, 0, step, STEPS))
        weights = method.weights_at(step, STEPS)
        sum(weights[name] * loss for name, loss in losses.items()).backward()
        for name, parameter in trained.items():
            # What DistributedDataParallel does between the processes.
            if parameter.grad is not None and dist.is_initialized():
                dist.all_reduce(parameter.grad)
                parameter.grad /= WORLD
            if step == 0 and parameter.grad is not None:
                results[f"gradient/{name}"] = parameter.grad.clone()
        results |= {f"loss/{step}/{name}": loss.detach() for name, loss in losses.items()}
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, STEPS)
    return results | {f"state/{name}": value for name, value in method.state_dict().items()}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD
    )
    share = BATCH // WORLD
    part = slice(rank * share, (rank + 1) * share)
    torch.save({kind: train(kind, part) for kind in KINDS}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_together(process, folder, count=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_pretrain_as_one_does(kind, ranks):
    first, second = (results[kind] for results in ranks)
    for name, expected in train(kind, slice(None)).items():
        if name.startswith("state/"):
            assert torch.equal(first[name], second[name]), name
        found = torch.stack([first[name], second[name]]).double().mean(0)
        gap = (found - expected.double()).abs().max()
        # Rounding grows over the steps; an error of sharding would be as large as the value.
        assert gap <= 2e-4 * expected.abs().max() + 1e-6, name
