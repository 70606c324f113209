"""A step in micro-batches is that of the whole batch, and holds the activations of one of them."""

import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.byol import BYOL, BYOLPredictor, BYOLProjector
from ssdistill.pretrain.mae import MAE
from ssdistill.pretrain.moco import MoCo, MoCoProjector
from ssdistill.pretrain.simclr import SimCLR, SimCLRProjector
from ssdistill.train.gradients import SharedLayer
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.passes import Passes

SIZE = 16


def transformer(depth=2, width=32, **args):
    torch.manual_seed(0)
    shape = {"img_size": SIZE, "patch_size": 4, "embed_dim": width, "depth": depth}
    args = {**shape, "num_heads": 2, **args}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), SIZE)


def simclr(encoder):
    torch.manual_seed(1)
    return SimCLR(encoder, projector=SimCLRProjector(output_dim=8, batch_norm="none")).train()


def make_views(count, number=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, SIZE, SIZE, generator=generator) for _ in range(number)]


def make_batch(count, step=0):
    images = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, step, 10)


def passes_of(task, optimizer=None, microbatch=None, accumulate=1, batch_size=64):
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup(task)
    loader = SimpleNamespace(batch_size=batch_size)
    training = SimpleNamespace(
        task=task, microbatch=microbatch, accumulate=accumulate, loader=loader
    )
    return Passes(training, model, fabric)


def gradients(task):
    return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def train(microbatch, count, steps):
    task = simclr(transformer())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    passes, totals = passes_of(task, microbatch=microbatch, batch_size=count), []
    for step in range(steps):
        losses, _ = passes(make_views(count, seed=step), make_batch(count, step), {"simclr": 1.0})
        totals.append(float(losses["simclr"]))
        optimizer.step()
        optimizer.zero_grad()
    return totals, task


def test_simclr_at_512_as_8_times_64_is_simclr_at_512():
    whole, first = train(None, 512, steps=4)
    parts, second = train(64, 512, steps=4)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole[0] > whole[-1]
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-5 * p.abs().max() + 1e-6, name


def by_hand(task, views, count, size):
    """SimCLR's losses with gradients through a loop over micro-batches, as one would write it."""
    parts = [
        task.encoder(torch.cat([view[i : i + size] for view in views])).embedding_BD.chunk(2)
        for i in range(0, count, size)
    ]
    z_BD = torch.cat([part[view] for view in range(2) for part in parts])
    z0_BP, z1_BP = task.projector(z_BD).chunk(2)
    return task.criterion(z0_BP, z1_BP)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_is_drawn_again_as_it_was(precision):
    first = simclr(transformer(drop_path_rate=0.5, proj_drop_rate=0.5))
    second, views = copy.deepcopy(first), make_views(12)
    autocast = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    torch.manual_seed(3)
    with autocast, in_microbatches(first, 12, 4):
        loss = first(views, make_batch(12))["simclr"]
    torch.rand(5)
    before_backward = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before_backward)
    torch.manual_seed(3)
    with autocast:
        expected = by_hand(second, views, 12, 4)
    expected.backward()
    rounding = 1e-5 if precision == torch.float32 else 2e-2
    assert torch.allclose(loss, expected, rtol=rounding)
    found, wanted = gradients(first), gradients(second)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= rounding * gradient.abs().max() + 1e-6, name


def test_running_statistics_are_updated_once_a_micro_batch(make_encoder):
    first = simclr(make_encoder())
    second, views = copy.deepcopy(first), make_views(12)
    with in_microbatches(first, 12, 5):  # three of four images
        loss = first(views, make_batch(12))["simclr"]
    before = copy.deepcopy(first.state_dict())
    loss.backward()
    by_hand(second, views, 12, 4).backward()
    counted = [name for name in before if name.startswith("encoder") and "num_batches" in name]
    assert counted and all(before[name] == 3 for name in counted)
    for name, value in second.state_dict().items():
        assert torch.equal(before[name], first.state_dict()[name]), name
        assert torch.allclose(before[name], value, rtol=1e-5), name
    wanted = gradients(second)
    for name, gradient in gradients(first).items():
        gap = (gradient - wanted[name]).abs().max()
        assert gap <= 1e-4 * wanted[name].abs().max() + 1e-6, name


def test_networks_that_do_not_train_are_cut_too_and_all_are_whole_afterwards(make_encoder):
    heads = {"projector": BYOLProjector(hidden_dim=8, output_dim=4)}
    task = BYOL(make_encoder(), predictor=BYOLPredictor(hidden_dim=8), **heads).train()
    target, sizes = task.target[0], []
    for encoder in (task.encoder, target):
        encoder.net.register_forward_pre_hook(lambda net, x: sizes.append(len(x[0])))
        conv = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
        conv.register_forward_pre_hook(lambda conv, x: sizes.append(len(x[0])))
    with in_microbatches(task, 12, 4):
        task(make_views(12), make_batch(12))
    assert sizes == [4] * 12  # two networks, two views, three parts
    assert task.encoder.division is None and target.division is None
    sizes.clear()
    with pytest.raises(ZeroDivisionError), in_microbatches(task, 12, 4):
        1 / 0  # noqa: B018
    task(make_views(12), make_batch(12))
    assert sizes == [12] * 4


class Kept:
    """A tensor that a graph keeps."""

    def __init__(self, x):
        self.x = x


class Peak:
    """The most bytes that graphs keep at any moment, beside what was there before."""

    def __init__(self, *known):
        self.now = self.most = 0
        self.known = {x.untyped_storage().data_ptr() for x in known}

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept.x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def keep(self, x):
        kept, size = Kept(x), x.nbytes
        if x.untyped_storage().data_ptr() not in self.known:
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(kept, self.free, size)
        return kept

    def free(self, size):
        self.now -= size


METHODS = {
    "simclr": lambda: simclr(transformer()),
    "mae": lambda: MAE(transformer(), decoder_dim=32, decoder_depth=6, decoder_heads=2).train(),
    "moco": lambda: MoCo(transformer(), queue=16, projector=MoCoProjector(output_dim=8)).train(),
}


def peak_of(kind, count, microbatch, compare):
    torch.manual_seed(0)
    task = METHODS[kind]()
    views = make_views(count, task.num_views)
    passes = passes_of(task, microbatch=microbatch, batch_size=count)
    shared = SharedLayer(task.encoder) if compare else None
    with Peak(*views, *task.parameters()) as peak:
        for _ in range(2):  # a shared layer that is known is measured in another way
            passes(views, make_batch(count), {kind: 1.0}, shared)
    assert peak.now == 0
    return peak.most


@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_activations_are_those_of_one_micro_batch(kind, compare):
    whole, alone = (peak_of(kind, count, None, compare) for count in (64, 8))
    parts = peak_of(kind, 64, 8, compare)
    assert whole > 7 * alone
    # Embeddings and the heads' activations are those of all images.
    assert parts < 1.5 * alone


def test_what_has_no_gradient_gets_none():
    task = simclr(transformer())
    task.encoder.net.patch_embed.requires_grad_(False)
    passes = passes_of(task, microbatch=4)
    passes(make_views(12), make_batch(12), {"simclr": 1.0})
    named = gradients(task)
    assert not any("patch_embed" in name for name in named)
    assert any("blocks.0" in name for name in named)


def test_an_input_that_asks_for_a_gradient_gets_the_same():
    task, (view, _) = simclr(transformer()), make_views(12)
    found = []
    for microbatch in (None, 5):
        x_BCHW = view.clone().requires_grad_()
        with in_microbatches(task, 12, microbatch):
            task.encoder(x_BCHW).embedding_BD.square().sum().backward()
        found.append(x_BCHW.grad)
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)
