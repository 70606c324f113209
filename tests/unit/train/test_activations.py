"""Recomputed activations: the same gradients and statistics to the bit, and less memory."""

import copy

import pytest
import torch
from torch import nn

from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.blocks import blocks_of
from ssdistill.pretrain.simclr import SimCLR, SimCLRProjector
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.activations import recomputed
from ssdistill.train.fabric import build_fabric
from ssdistill.train.loop import Training, fit
from ssdistill.train.microbatch import Division
from ssdistill.train.optim import OptimSettings
from ssdistill.train.seeding import seed_generators
from ssdistill.train.settings import DeviceSettings

RESNET = {"layers": (2, 1, 0, 0), "channels": (32, 16, 16, 16), "drop_path_rate": 0.3}
RESNET |= {"stem_type": "deep", "stem_width": 4}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
VIT |= {"drop_path_rate": 0.3, "proj_drop_rate": 0.1}
NETWORKS = {
    "resnet10t": (RESNET, ("layer1", "before_relu:layer2")),
    "vit_tiny_patch16_224": (VIT, ("blocks.1", "attention:blocks.3")),
}


def encoder(name: str = "resnet10t"):
    torch.manual_seed(0)
    args, taps = NETWORKS.get(name, ({}, ()))
    size = 16 if args else 32
    found = build_encoder(EncoderSettings(name=name, args=args, stem="native"), size).train()
    for norm in found.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # timm starts residual branches at zero
    found.set_taps(taps)
    return found


def step(network, wanted: bool, parts: int | None = None, half: bool = False):
    """Gradients and buffers after a step of a copy, and the numbers kept for its backward pass."""
    network, kept = copy.deepcopy(network), []
    network.division = parts and Division(6, parts)
    x_BCHW = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    hooks = (lambda x: kept.append(x.numel()) or x), (lambda x: x)
    with recomputed(network, wanted):
        autocast = torch.autocast("cpu", dtype=torch.float16, enabled=half)
        with torch.autograd.graph.saved_tensors_hooks(*hooks), autocast:
            out = network(x_BCHW)
        values = [out.embedding_BD, *out.maps.values()]
        (sum(v.float().square().sum() for v in values) + torch.rand(())).backward()
        assert network._caught == {}
    assert not any("forward" in vars(module) for module in network.modules())
    drawn = torch.rand(())
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return found | dict(network.named_buffers()) | {"drawn": drawn}, sum(kept)


@pytest.mark.parametrize("changes", [{}, {"parts": 2}, {"half": True}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_same_to_the_bit_and_keeps_less(name, changes):
    plain, kept = step(encoder(name), False, **changes)
    again, kept_again = step(encoder(name), True, **changes)
    assert plain.keys() == again.keys()
    for key, value in plain.items():
        assert torch.equal(value, again[key]), key
    if "parts" not in changes:  # which keep nothing anyway
        assert kept_again < kept / 2


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet10t", 3, "layer1.0"),
        ("vit_tiny_patch16_224", 4, "blocks.0"),
        ("mobilenetv3_small_050", 11, "blocks.0.0"),
        ("regnetx_002", 4, "s1"),
        ("vgg11", 0, None),
    ],
)
def test_blocks_are_what_a_network_repeats_or_its_stages(name, count, first):
    args = NETWORKS.get(name, ({}, ()))[0]
    size = 16 if args else 32
    found = list(blocks_of(build_encoder(EncoderSettings(name=name, args=args), size)))
    assert len(found) == count and next(iter(found), None) == first


def test_a_network_without_blocks_is_refused_in_one_line():
    refused = pytest.raises(UserError, match="'vgg11' has no blocks to recompute; set it to")
    with refused, recomputed(encoder("vgg11")):
        pass


class Overwriting(nn.Module):
    """A block that changes what it is given."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x_BCHW):
        return self.block(x_BCHW.mul_(2) if self.training else x_BCHW)


def test_a_block_that_overwrites_what_it_was_given_is_refused():
    network = encoder()
    network.set_taps(())
    network.net.layer1[0] = Overwriting(network.net.layer1[0])
    with pytest.raises(UserError, match="'resnet10t' overwrites the inputs of its blocks"):
        step(network, True)


@pytest.fixture
def train(make_store):
    def train(folder, wanted):
        task = SimCLR(encoder(), projector=SimCLRProjector(output_dim=8))
        training = Training(
            task=task,
            loader=Loader(make_store(), 8, seed=1, num_steps=4),
            recipes=(RECIPES["weak"],) * 2,
            optim=OptimSettings(kind="sgd", lr=0.05),
            seed=2,
            checkpoint_seconds=0,
            checkpoint_activations=wanted,
        )
        seed_generators(0, "training")
        run = Run(folder, stage="pretrain", digest="d" * 64, seed=0)
        settings = TrackingSettings(wandb="disabled", log_every=1, gradients_every=1)
        with Tracker(run, settings) as tracker:
            tracker.finish(fit(training, build_fabric("cpu", precision="32-true"), tracker))
        lines = read_metrics(folder)
        names = [name for name in lines[0] if not name.startswith("time/")]
        return task.state_dict(), [[line[name] for name in names] for line in lines]

    return train


def test_a_training_is_the_same_to_the_bit(train, tmp_path):
    plain, plain_lines = train(tmp_path / "plain", False)
    again, lines = train(tmp_path / "again", True)
    assert lines == plain_lines
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name


def test_a_compiled_encoder_is_not_recomputed():
    with pytest.raises(ValueError, match="compile and checkpoint_activations are both true"):
        DeviceSettings(compile=True, checkpoint_activations=True)
