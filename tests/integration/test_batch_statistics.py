"""Batch norms of two processes with a part of the batch each are those of one with all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import run_together
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.ema import momentum_copy
from ssdistill.pretrain.byol import BYOL, BYOLPredictor, BYOLProjector
from ssdistill.pretrain.simclr import SimCLR, SimCLRProjector
from ssdistill.train import batch_statistics
from ssdistill.train.batch_statistics import synchronized
from ssdistill.train.microbatch import in_microbatches

WORLD, BATCH, STEPS = 2, 8, 4


class OwnForward(nn.BatchNorm2d):
    """A class nobody has heard of."""

    def forward(self, x):
        return super().forward(2 * x).tanh()


NORMS = {
    "vectors": (lambda: nn.BatchNorm1d(6), (6,)),
    "sequences": (lambda: nn.BatchNorm1d(6), (6, 5)),
    "maps": (lambda: nn.BatchNorm2d(6, momentum=0.3), (6, 3, 4)),
    "plain": (lambda: nn.BatchNorm2d(6, affine=False), (6, 3, 4)),
    "cumulative": (lambda: nn.BatchNorm2d(6, momentum=None), (6, 3, 4)),
    "forgetful": (lambda: nn.BatchNorm2d(6, track_running_stats=False), (6, 3, 4)),
    "with activation": (lambda: BatchNormAct2d(6), (6, 3, 4)),
    "own forward": (lambda: OwnForward(6), (6, 3, 4)),
    "large mean": (lambda: nn.BatchNorm2d(6), (6, 3, 4)),
    "double": (lambda: nn.BatchNorm2d(6).double(), (6, 3, 4)),
    "frozen": (lambda: nn.BatchNorm2d(6).eval(), (6, 3, 4)),
}
PARTS = {
    "even": (slice(0, 4), slice(4, BATCH)),
    "uneven": (slice(0, 5), slice(5, BATCH)),
}


def norm_results(name: str, part: slice) -> dict[str, Tensor]:
    """Outputs, gradients and state after two passes."""
    make, shape = NORMS[name]
    torch.manual_seed(0)
    norm, results = make(), {}
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    with synchronized(norm):
        for step in range(2):
            x = torch.randn(BATCH, *shape) + (100.0 if name == "large mean" else 1.0)
            pull = torch.randn(BATCH, *shape)
            x, pull = ((v.double() if name == "double" else v)[part] for v in (x, pull))
            x.requires_grad_()
            y = norm(x)
            norm.zero_grad()
            (y * pull).sum().backward()
            results |= {f"rows/y{step}": y.detach(), f"rows/x{step}": x.grad}
            results |= {f"sum/{n}{step}": p.grad.clone() for n, p in norm.named_parameters()}
    return results | {f"state/{n}": v.clone() for n, v in norm.state_dict().items()}


def resnet() -> nn.Module:
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16)}
    args |= {"stem_type": "deep", "stem_width": 8}
    settings = EncoderSettings(name="resnet10t", args=args, stem_stride=2)
    return build_encoder(settings, 16)


HEADS = {
    "projector": BYOLProjector(hidden_dim=16, output_dim=8),
    "predictor": BYOLPredictor(hidden_dim=16),
}
TASKS = {
    "simclr": lambda: SimCLR(resnet(), projector=SimCLRProjector(output_dim=8)),
    "byol": lambda: BYOL(resnet(), **HEADS),
}


def train(kind: str, part: slice | Tensor, microbatch: int | None = None) -> dict[str, Tensor]:
    """Losses, and the weights and statistics after a few steps."""
    task, results = TASKS[kind]().train(), {}
    optimizer = torch.optim.SGD(task.parameters(), lr=0.02)
    trained = [p for p in task.parameters() if p.requires_grad]
    with synchronized(task):
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            views = [torch.rand(BATCH, 3, 16, 16, generator=generator)[part] for _ in range(2)]
            index_B = torch.arange(BATCH)[part]
            images = torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8)
            with in_microbatches(task, len(index_B), microbatch):
                losses = task(views, Batch(images, index_B, 0, step, STEPS))
            sum(losses.values()).backward()
            for p in trained:
                if dist.is_initialized():  # what DistributedDataParallel does
                    dist.all_reduce(p.grad)
                    p.grad /= WORLD
            results[f"loss/{step}"] = losses[kind].detach()
            optimizer.step()
            optimizer.zero_grad()
            task.after_step(step, STEPS)
    return results | {f"state/{n}": v.clone() for n, v in task.state_dict().items()}


def check_that_nothing_else_changes() -> None:
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))
    classes = [type(module) for module in network.modules()]
    names = list(network.state_dict())
    with synchronized(network):
        assert [type(module) for module in network.modules()] == classes
        assert list(network.state_dict()) == names
        copied = momentum_copy(network)
        network[1].running_mean.fill_(3.0)
        copied(torch.rand(4, 3))
        assert copied[1].num_batches_tracked == 1 and network[1].num_batches_tracked == 0
        assert copied[1].running_mean.max() < 3.0
    assert not any("forward" in vars(module) for module in network.modules())
    with pytest.raises(ZeroDivisionError), synchronized(network):
        1 / 0  # noqa: B018
    assert not any("forward" in vars(module) for module in network.modules())


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD
    )
    found = {}
    for name in NORMS:
        for label, parts in PARTS.items():
            found[f"{name}/{label}"] = norm_results(name, parts[rank])
    for kind in TASKS:
        found[kind] = train(kind, PARTS["even"][rank])
    found["in parts"] = train("simclr", PARTS["even"][rank], microbatch=2)
    check_that_nothing_else_changes()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_together(process, folder, count=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("label", PARTS)
@pytest.mark.parametrize("name", NORMS)
def test_two_processes_normalize_as_one_does(name, label, ranks):
    first, second = (results[f"{name}/{label}"] for results in ranks)
    for key, expected in norm_results(name, slice(None)).items():
        if key.startswith("rows/"):
            found = torch.cat([first[key], second[key]])
        elif key.startswith("sum/"):
            found = first[key] + second[key]
        else:
            assert torch.equal(first[key], second[key]), key
            found = first[key]
        assert found.dtype == expected.dtype
        rounding = 1e-4 if name == "large mean" else 1e-5
        assert torch.allclose(found, expected, rtol=rounding, atol=rounding), key


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_train_a_resnet_as_one_does(kind, ranks):
    first, second = (results[kind] for results in ranks)
    for name, expected in train(kind, slice(None)).items():
        if name.startswith("state/"):
            assert torch.equal(first[name], second[name]), name
        found = torch.stack([first[name], second[name]]).double().mean(0)
        gap = (found - expected.double()).abs().max()
        # Rounding grows over the steps.
        assert gap <= 1e-3 * expected.abs().max() + 1e-5, name


def test_micro_batches_are_synchronized_when_they_are_encoded_again(ranks):
    first, second = (results["in parts"] for results in ranks)
    # Process 0 has images 0 to 3: the first micro-batch of both is images 0, 1, 4 and 5.
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    for name, expected in train("simclr", order, microbatch=4).items():
        found = torch.stack([first[name], second[name]]).double().mean(0)
        gap = (found - expected.double()).abs().max()
        assert gap <= 1e-3 * expected.abs().max() + 1e-5, name


def test_half_precision_is_normalized_in_float32():
    norm = nn.BatchNorm1d(4)
    x = torch.randn(16, 4) + 3
    wide = whole_batch_norm_alone(norm, x)
    assert whole_batch_norm_alone(norm, x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(wide, whole_batch_norm_alone(norm, x.bfloat16()).float(), atol=0.05)


def whole_batch_norm_alone(norm: nn.Module, x: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_statistics.dist, "all_reduce", lambda x: None)
        return batch_statistics.whole_batch_norm(x, None, None, norm.weight, norm.bias)


def test_one_process_is_left_alone():
    norm = nn.BatchNorm1d(4)
    with synchronized(norm):
        assert "forward" not in vars(norm)
