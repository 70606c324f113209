"""Networks of plug-ins and programs: any PyTorch module as the backbone of an encoder.

```python
from ssdistill.models.networks import network

@network("tiny_cnn", taps={"c4": "body.layer3"}, embedding=lambda out: out["pooled"])
class TinyCNN(nn.Module):
    def __init__(self, width: int = 32, in_chans: int = 3): ...
```

A config then says ``encoder: {name: tiny_cnn, args: {width: 64}}``.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import timm
from torch import Tensor, nn

from ssdistill.errors import UserError, nearest, shortened
from ssdistill.models.own_net import OwnNet
from ssdistill.models.spec import RGB, EncoderSpec
from ssdistill.models.trial import refusing
from ssdistill.settings.code_identity import identity_of
from ssdistill.settings.plugins import PLUGINS, PROGRAM, package_of, plugins

log = logging.getLogger(__name__)

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
CHANNELS = "in_chans"
"""Argument by which a network is told how many channels images have, if it has one."""


@dataclass(frozen=True)
class Network:
    """A network that a config can name.

    Attributes:
        name: in configs.
        build: returns the module, with random weights; its arguments are ``encoder.args``.
        package: of the plug-in, or ``__main__`` of a program.
        embedding: of what the module returns, (B, D); None for
            :func:`ssdistill.models.own_net.find_embedding`.
        taps: names of inner modules whose outputs are feature maps, by the names of the taps.
        sha256: of what defines it, where that is no plug-in.
    """

    name: str
    build: Callable[..., nn.Module]
    package: str
    embedding: Callable[[Any], Tensor] | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""

    def identity(self) -> dict[str, dict[str, str]]:
        """What hashes of stages contain of it, by a name."""
        plugin = PLUGINS.get(self.package)
        if plugin is not None and plugin.modules:
            return plugin.identity(self.build)
        return {f"{self.package}.{self.name}": {"sha256": self.sha256}}

    @property
    def arguments(self) -> list[str]:
        """Names of the arguments that a config may set."""
        parameters = inspect.signature(self.build).parameters.values()
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        return [p.name for p in parameters if p.kind in kinds and p.name != CHANNELS]


NETWORKS: dict[str, Network] = {}
"""Every network that was registered, by its name."""


def network(
    name: str,
    *,
    embedding: Callable[[Any], Tensor] | None = None,
    taps: Mapping[str, str] | None = None,
) -> Callable[[Builder], Builder]:
    """Give a network a name for configs; a decorator of a module's class, or of a function.

    Args:
        name: no name of timm's.
        embedding: from what the module returns for (B, C, H, W) to the embedding (B, D); by
            default what it returns, averaged over positions if it is a map.
        taps: by the name of a tap, the inner module, or operation as torch.fx names it, whose
            output (B, C, H, W), or (B, tokens, C), losses can read, from shallow to deep.

    Raises:
        UserError: a name of timm's, or of another package's network.
    """

    def add(build: Builder) -> Builder:
        sha256 = network_sha256(build, embedding, taps or {})
        add_network(Network(name, build, package_of(build), embedding, dict(taps or {}), sha256))
        return build

    return add


def network_sha256(
    made_of: Any, embedding: Callable[[Any], Tensor] | None, taps: Mapping[str, str]
) -> str:
    """sha256 of what defines a network: a module, or what makes one; its embedding; its taps.

    Raises:
        UserError: its source cannot be read.
    """
    return identity_of((made_of, embedding, sorted(taps.items())))


def add_network(entry: Network) -> None:
    """Register a network; another one of the same package and name is replaced.

    Raises:
        UserError: a name of timm's, or of another package's network.
    """
    known = NETWORKS.get(entry.name)
    if timm.is_model(entry.name) or (known and known.package != entry.package):
        whose = f"of the package {known.package}" if known else "of timm's"
        raise UserError(
            f"network '{shortened(entry.name)}': there is one {whose} with this name; choose "
            "another name"
        )
    if known and known.sha256 != entry.sha256:
        log.warning("network '%s': another one of that name takes its place", entry.name)
    NETWORKS[entry.name] = entry


@contextmanager
def added_for_a_trial(entry: Network) -> Iterator[None]:
    """Register a network; what was there before is put back if the block fails."""
    before = NETWORKS.get(entry.name)
    add_network(entry)
    try:
        yield
    except BaseException:
        NETWORKS.pop(entry.name)
        if before is not None:
            NETWORKS[entry.name] = before
        raise


def find_network(name: str) -> Network | None:
    """Return the network with that name; None for timm's, torchvision's and unknown ones."""
    plugins()
    return NETWORKS.get(name)


def is_of_unknown_package(spec: EncoderSpec) -> bool:
    """Whether the network of a spec is one that only a package or program that is absent has."""
    return spec.library not in ("timm", "torchvision") and find_network(spec.name) is None


def create_own_net(spec: EncoderSpec) -> OwnNet:
    """Build the network of a spec, with random weights.

    Raises:
        UserError: its package has not been imported, or it refuses its arguments.
    """
    entry = find_network(spec.name)
    if entry is None:
        if spec.library == PROGRAM:
            raise UserError(
                f"'{spec.name}' is a network of the program that made it: call ssdistill.encoder "
                f"with name='{spec.name}' and the same module first, or put it in a package"
            )
        raise UserError(
            f"'{spec.name}' is a network of the package {spec.library}, which has not been "
            f"imported: install it, or add --import {spec.library}"
        )
    for name in spec.args:
        if name not in entry.arguments:
            raise UserError(
                f"encoder.args.{shortened(name)}: no argument of '{spec.name}'"
                f"{nearest(name, entry.arguments)}; known: {', '.join(entry.arguments) or 'none'}"
            )
    args = dict(spec.args)
    if CHANNELS in inspect.signature(entry.build).parameters:
        args[CHANNELS] = spec.in_chans
    elif spec.in_chans != RGB and entry.package != PROGRAM:  # of which a trial tells
        raise UserError(
            f"'{spec.name}' has no argument {CHANNELS}, so it takes images of three channels, not "
            f"{spec.in_chans}; give it one, or set data.channels"
        )
    with refusing(f"encoder.args of '{spec.name}'"):
        module = entry.build(**args)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"'{spec.name}': what makes it returned {shortened(repr(module))}; return a module"
        )
    return OwnNet(module, spec, entry.embedding, entry.taps)
