"""Checks of networks that a config can name: as encoders, students and teachers."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.errors import UserError, one_line
from ssdistill.models.backbones import Encoder
from ssdistill.models.networks import NETWORKS, Network, add_network, network_sha256
from ssdistill.models.spec import EncoderSettings
from ssdistill.settings import Size, height_width
from ssdistill.settings.plugins import package_of
from ssdistill.testing.candidate import UNKNOWN, demand, demand_finite, one_line_error, refused
from ssdistill.testing.tiny_networks import named_encoder

SIDE, OBLONG, BATCH = 32, (32, 48), 4
COLOR = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
FIVE = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5
BUILDER = "network_under_test"
"""Name of a network that has none."""


@dataclass(frozen=True, eq=False)
class NamedNetwork:
    """A network and the arguments that it is checked with.

    Attributes:
        name: in configs; args: ``encoder.args``; size: of the images.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    size: Size = SIDE

    def encoder(self, size: Size | None = None, statistics: Any = COLOR) -> Encoder:
        """An encoder of it, from one seed, in eval mode."""
        settings = EncoderSettings(name=self.name, args=dict(self.args))
        return named_encoder(settings, size or self.size, *statistics)

    def images(self, size: Size | None = None, channels: int = 3) -> Tensor:
        """Random images in [0, 1]."""
        generator = torch.Generator().manual_seed(0)
        shape = BATCH, channels, *height_width(size or self.size)
        return torch.rand(shape, generator=generator)


@contextmanager
def named(network: str | Callable[..., nn.Module]) -> Iterator[str]:
    """The name of a network; one without a name has one within the block."""
    if isinstance(network, str):
        yield network
        return
    known = [name for name, entry in NETWORKS.items() if entry.build is network]
    if known:
        yield known[0]
        return
    sha256 = network_sha256(network, None, {})
    add_network(Network(BUILDER, network, package_of(network), sha256=sha256))
    try:
        yield BUILDER
    finally:
        del NETWORKS[BUILDER]


def embeds_images(one: NamedNetwork) -> None:
    """It has an embedding of each image, finite, as wide as it says, and unlike others."""
    encoder = one.encoder()
    with torch.no_grad():
        embedding_BD = encoder(one.images()).embedding_BD
    expected = BATCH, encoder.embed_dim
    demand(embedding_BD.shape == expected, f"the embedding is {tuple(embedding_BD.shape)}")
    demand(torch.isfinite(embedding_BD).all(), "the embedding has NaN or infinity")
    differ = (embedding_BD - embedding_BD[:1]).abs().max() > 0
    demand(differ, "all images have one embedding")


@torch.no_grad()
def an_image_is_embedded_by_itself(one: NamedNetwork) -> None:
    """In eval mode the embedding of an image does not depend on the others of its batch."""
    encoder, x_BCHW = one.encoder(), one.images()
    whole_BD, part_BD = encoder(x_BCHW).embedding_BD, encoder(x_BCHW[:1]).embedding_BD
    largest = float(whole_BD.abs().max())
    near = torch.allclose(whole_BD[:1], part_BD, rtol=1e-4, atol=1e-4 * largest)
    demand(near, "the embedding of an image changes with the others of its batch")
    again = torch.equal(encoder(x_BCHW).embedding_BD, whole_BD)
    demand(again, "the same images have another embedding the second time")


@torch.no_grad()
def taps_are_maps(one: NamedNetwork) -> None:
    """Every tap is a feature map (B, C, H, W) of the shape that losses are told."""
    encoder = one.encoder()
    stages = tuple(name for name in encoder.tap_names if ":" not in name)
    encoder.set_taps(stages)
    shapes, maps = encoder.map_shapes(), encoder(one.images()).maps
    demand(tuple(maps) == stages, f"taps {', '.join(stages)} give maps {', '.join(maps)}")
    for name, map_BCHW in maps.items():
        shape = tuple(map_BCHW.shape[1:])
        demand(map_BCHW.ndim == 4 and shape == shapes[name], f"tap {name} has shape {shape}")
        demand(torch.isfinite(map_BCHW).all(), f"tap {name} has NaN or infinity")
    text = refused(lambda: encoder.set_taps((UNKNOWN,)), "an unknown tap")
    demand(UNKNOWN in text, f"an unknown tap is refused without its name: {text}")


@torch.no_grad()
def other_sizes_and_channels(one: NamedNetwork) -> None:
    """Oblong images and images of five channels are embedded, or refused in one line."""
    for size, statistics in ((OBLONG, COLOR), (one.size, FIVE)):
        channels = len(statistics[0])
        what = f"images of {size} pixels and {channels} channels"
        try:
            encoder = one.encoder(size, statistics)
        except UserError as error:
            one_line_error(error, what)
            continue
        embedding_BD = encoder(one.images(size, channels)).embedding_BD
        usable = embedding_BD.shape == (BATCH, encoder.embed_dim)
        demand(usable and torch.isfinite(embedding_BD).all(), f"cannot embed {what}")


def unknown_arguments_are_refused(one: NamedNetwork) -> None:
    """An argument that it does not have is refused, and named."""
    wrong = NamedNetwork(one.name, {**one.args, UNKNOWN: 1}, one.size)
    text = refused(wrong.encoder, f"an argument {UNKNOWN}")
    demand(UNKNOWN in text, f"an argument {UNKNOWN} is refused without its name: {text}")


def every_weight_is_trained(one: NamedNetwork) -> None:
    """The gradient of the embedding reaches every weight, and training moves it."""
    encoder = one.encoder().train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    embedding_BD = encoder(one.images()).embedding_BD
    target_BD = torch.randn(embedding_BD.shape)
    (embedding_BD - target_BD).square().mean().backward()
    for name, parameter in encoder.net.named_parameters():
        if not parameter.requires_grad:
            continue
        demand(parameter.grad is not None, f"no gradient reaches {name}; freeze it or remove it")
        demand_finite({name: parameter})


def bfloat16_is_finite(one: NamedNetwork) -> None:
    """Under autocast in bfloat16 the embedding is finite, and about the same."""
    encoder, x_BCHW = one.encoder(), one.images()
    with torch.no_grad():
        exact_BD = encoder(x_BCHW).embedding_BD
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found_BD = encoder(x_BCHW).embedding_BD.float()
    gap = float((found_BD - exact_BD).abs().max())
    near = gap <= 0.1 * float(exact_BD.abs().max())
    demand(near, f"the embedding in bfloat16 differs by {gap:.2g}")


@torch.no_grad()
def copies_are_the_same(one: NamedNetwork) -> None:
    """A deep copy, and another network with its state dict, embed as it does."""
    encoder, x_BCHW = one.encoder(), one.images()
    expected_BD = encoder(x_BCHW).embedding_BD
    copied = torch.equal(copy.deepcopy(encoder)(x_BCHW).embedding_BD, expected_BD)
    demand(copied, "a deep copy has another embedding; momentum networks are copies")
    other = one.encoder()
    for parameter in other.parameters():
        parameter.add_(1.0)
    other.load_state_dict(encoder.state_dict())
    same = torch.equal(other(x_BCHW).embedding_BD, expected_BD)
    demand(same, "it differs after its state dict was loaded; keep all state in buffers")


@torch.no_grad()
def is_saved_and_opened(one: NamedNetwork) -> None:
    """It is saved as the chain saves it, and the file embeds as it does."""
    encoder, x_BCHW = one.encoder(), one.images()
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(encoder, folder)
        found = load_encoder(folder)
    same = torch.equal(found(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
    demand(same, "the saved network embeds otherwise")


NETWORK_CHECKS: dict[str, Callable[[NamedNetwork], None]] = {
    "embedding": embeds_images,
    "single_images": an_image_is_embedded_by_itself,
    "taps": taps_are_maps,
    "other_images": other_sizes_and_channels,
    "unknown_argument": unknown_arguments_are_refused,
    "gradients": every_weight_is_trained,
    "bfloat16": bfloat16_is_finite,
    "copies": copies_are_the_same,
    "export": is_saved_and_opened,
}


def run_network_checks(
    network: str | Callable[..., nn.Module], size: Size, args: Mapping[str, Any]
) -> None:
    """Run all checks of a network.

    Raises:
        AssertionError: some of them fail; each is named, with what is wrong, in a line of its own.
    """
    faults: list[str] = []
    with named(network) as name, torch.random.fork_rng(devices=[]):
        one = NamedNetwork(name, args, size)
        for title, check in NETWORK_CHECKS.items():
            try:
                check(one)
            except AssertionError as error:
                faults.append(f"{title}: {one_line(error)}")
            except Exception as error:  # a network of somebody else may raise anything
                faults.append(f"{title}: {type(error).__name__}: {one_line(error)}")
    if faults:
        what = network if isinstance(network, str) else network.__qualname__
        many = f"{what} (network) fails {len(faults)} of {len(NETWORK_CHECKS)} checks:\n  "
        text = many + "\n  ".join(faults)
        raise AssertionError(text if len(faults) > 1 else f"{what} (network): {faults[0]}")
