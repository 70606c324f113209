"""Two processes with half a batch each against one process with all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distill.bank import Bank, IndexMemory, TeacherMean
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Representation
from ssdistill.registry import LOSSES

WORLD, BATCH, NUM_SAMPLES, STEPS, VIEWS = 2, 12, 40, 2, 2
SIDES = {"act1": 16, "layer1": 8, "layer2": 4, "layer3": 2, "layer4": 2}
KINDS = list(LOSSES.classes)
EXACT = [kind for kind in KINDS if getattr(LOSSES[kind], "exact_under_sharding", False)]


def maps_of(dim: int) -> dict[str, tuple[int, int, int]]:
    return {name: (dim // 2, side, side) for name, side in SIDES.items()}


def build(kind: str) -> Loss:
    torch.manual_seed(3)
    known = Shapes(12, 16, NUM_SAMPLES, None, 10, maps_of(12), maps_of(16))
    schema = LOSSES.schema(kind)
    centred = {"center_teacher": True} if "center_teacher" in schema.model_fields else {}
    return LOSSES.build(schema(**centred), known).train()


def representations(dim: int, projection_dim: int | None, part: slice) -> list[Representation]:
    """``part`` of a whole batch that is the same on every process."""
    found = []
    for _ in range(VIEWS):
        embedding_BD = torch.randn(BATCH, dim)
        projection_BP = torch.randn(BATCH, projection_dim)[part] if projection_dim else None
        maps = {name: torch.randn(BATCH, *shape)[part] for name, shape in maps_of(dim).items()}
        found.append(Representation(embedding_BD[part], projection_BP, maps))
    return found


def train(kind: str, part: slice) -> dict[str, Tensor]:
    """Losses, gradients and remembered vectors of two steps on ``part`` of every batch."""
    loss_of, results = build(kind), {}
    for step in range(STEPS):
        torch.manual_seed(step)
        index_B = torch.randperm(NUM_SAMPLES)[:BATCH][part]
        student = representations(12, None, part)
        for view in student:
            view.embedding_BD.requires_grad_()
        teacher = representations(16, 10, part)
        images = torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8)
        torch.manual_seed(100 * len(index_B) + int(index_B[0]))  # no process draws like another
        loss = loss_of(student, teacher, Batch(images, index_B, 0, step, STEPS))
        loss_of.zero_grad()
        if loss.requires_grad:
            loss.backward()
        results[f"loss/{step}"] = loss.detach()
        for view, representation in enumerate(student):
            if representation.embedding_BD.grad is not None:
                results[f"student/{step}/{view}"] = representation.embedding_BD.grad
        for name, parameter in loss_of.named_parameters():
            results[f"parameter/{step}/{name}"] = parameter.grad.clone()
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
    torch.multiprocessing.spawn(process, (folder,), nprocs=WORLD)
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
