"""Losses on two processes with half a batch each equal those on one with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import run_together
from synthetic import NUM_SAMPLES, make_outputs, make_shapes, make_teacher_fit, mapped
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss
from ssdistill.losses.base.bank import Bank, IndexMemory, TeacherMean
from ssdistill.settings.registry import LOSSES

WORLD, BATCH, STEPS = 2, 12, 2
KINDS = list(LOSSES.classes)
EXACT = [kind for kind in KINDS if LOSSES[kind].exact_under_sharding]


def build(kind: str) -> Loss:
    torch.manual_seed(3)
    known = make_shapes()
    schema = LOSSES.schema(kind)
    centered = {"center_teacher": True} if "center_teacher" in schema.model_fields else {}
    loss = LOSSES.build(schema(**centered), known).train()
    loss.fit_teacher(make_teacher_fit(known, NUM_SAMPLES))
    return loss


def train(kind: str, part: slice) -> dict[str, Tensor]:
    """Losses, gradients and remembered vectors of two steps on ``part`` of every batch."""
    loss_of, results = build(kind), {}
    for step in range(STEPS):
        # The whole batch is the same on every process.
        torch.manual_seed(step)
        index_B = torch.randperm(NUM_SAMPLES)[:BATCH][part]
        whole = make_outputs(loss_of, BATCH, max(2, loss_of.views))
        student, teacher = (mapped(side, lambda x: x.detach()[part]) for side in whole)
        for view in [*student, *student.extra.values()]:
            for x in (view.embedding_BD, *view.maps.values()):
                x.requires_grad_()
        images = torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8)
        batch = Batch(images, index_B, 0, step, STEPS, cutmix_fraction=0.7)
        torch.manual_seed(100 * len(index_B) + int(index_B[0]))  # no process draws like another
        loss = loss_of(student, teacher, batch)
        loss_of.zero_grad()
        if loss.requires_grad:
            loss.backward()
        results[f"loss/{step}"] = loss.detach()
        for view, representation in enumerate(student):
            leaves = {"embedding": representation.embedding_BD, **representation.maps}
            for name, x in leaves.items():
                if x.grad is not None:
                    results[f"student/{step}/{view}/{name}"] = x.grad
        for name, parameter in loss_of.named_parameters():
            if parameter.requires_grad:
                results[f"parameter/{step}/{name}"] = parameter.grad.clone()
        loss_of.after_step(step, STEPS)
    for name, module in loss_of.named_modules():
        if isinstance(module, Bank | IndexMemory | TeacherMean):
            for buffer_name, buffer in module.named_buffers():
                results[f"state/{name}.{buffer_name}"] = buffer
    return results


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
def test_every_process_remembers_the_same(kind, ranks):
    first, second = (results[kind] for results in ranks)
    for name, value in first.items():
        assert torch.isfinite(value).all(), name
        if name.startswith("state/"):
            assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", EXACT)
def test_a_sharded_batch_trains_like_the_whole_one(kind, ranks):
    whole = train(kind, slice(None))
    for name, expected in whole.items():
        parts = [results[kind][name] for results in ranks]
        if name.startswith("student/"):
            sharded = torch.cat(parts) / WORLD
        else:
            sharded = torch.stack(parts).double().mean(0).to(expected.dtype)
        assert sharded.shape == expected.shape
        assert (sharded - expected).abs().max() <= 1e-5 * expected.abs().max(), name
