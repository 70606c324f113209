"""Any PyTorch module as an encoder, and encoders as sections of a config."""

import copy
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.artifacts.description import DESCRIPTION
from ssdistill.errors import UserError, shortened
from ssdistill.evaluate.opening.arguments import check_image_size, check_statistics
from ssdistill.files import check_writable, user_path
from ssdistill.models.backbones import Encoder, encoder_from_spec
from ssdistill.models.identity import encoder_sha256
from ssdistill.models.networks import (
    Network,
    added_for_a_trial,
    find_network,
    network_sha256,
)
from ssdistill.models.spec import IMAGENET_MEAN, IMAGENET_STD, Channels, EncoderSpec
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings import Size
from ssdistill.settings.plugins import PROGRAM

WEIGHTS = "weights"
"""Folder in the runs folder of the weights of modules that programs train or compress."""
MADE: "WeakKeyDictionary[Encoder, tuple[str, str]]" = WeakKeyDictionary()
"""What a network and its weights were when :func:`encoder` made it."""
DEFAULT_SIZE = 224
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


@overload
def encoder(
    module: nn.Module | Callable[..., nn.Module],
    *,
    image_size: Size | None = None,
    input_size: Size | None = None,
    embedding: Callable[[Any], Tensor] | None = None,
    taps: Mapping[str, str] | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    name: str | None = None,
    example: None = None,
) -> Encoder: ...


@overload
def encoder(
    module: nn.Module,
    *,
    embedding: Callable[[Any], Tensor] | None = None,
    name: str | None = None,
    example: Tensor,
) -> Wrapped: ...


def encoder(
    module: nn.Module | Callable[..., nn.Module],
    *,
    image_size: Size | None = None,
    input_size: Size | None = None,
    embedding: Callable[[Any], Tensor] | None = None,
    taps: Mapping[str, str] | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    name: str | None = None,
    example: Tensor | None = None,
) -> Encoder | Wrapped:
    """Any PyTorch module as an encoder: to distill from or into, compress, evaluate and embed.

    Args:
        module: takes normalized images (B, C, H, W). A module keeps its weights; a function or
            class that returns one is called for every seed, so that initial weights follow from
            the seed.
        image_size: side of the images, in pixels, or ``(height, width)``; by default
            ``input_size``, or 224.
        input_size: size to which images are resized inside the encoder; None leaves them.
        embedding: from what the module returns to the embedding (B, D); by default what it
            returns, its ``pooler_output``, or the mean of a map over positions.
        taps: inner modules, or operations as torch.fx names them (``layer3.1.add``), by a name,
            from shallow to deep, whose outputs (B, C, H, W) or (B, tokens, C) losses can read.
        mean, std: one number a channel by which images in [0, 1] are normalized; ImageNet's by
            default. Their number is that of the channels.
        name: in configs and reports; by default the class's.
        example: for a module of other inputs than images, at least two of them along the first
            axis, such as token ids (B, T). It can be compressed by steps, and saved; sizes,
            taps and statistics are of images and cannot be set.

    Returns:
        an encoder: ``encoder(x_BCHW).embedding_BD`` for images in [0, 1]; with ``example``, a
        model of such inputs.

    Raises:
        UserError: no embedding (B, D), an unknown inner module, a name of timm's, or source that
            cannot be read.
    """
    if example is not None:
        of_images = {"image_size": image_size, "input_size": input_size, "taps": taps}
        return _of_other_inputs(module, example, embedding, name, **of_images, mean=mean, std=std)
    if isinstance(module, Encoder):
        raise UserError("ssdistill.encoder: this is an encoder already; pass it as it is")
    try:
        image_size = check_image_size(image_size)
        input_size = check_image_size(input_size, "input_size")
        check_statistics(mean, std)
        _check_names(name, taps, embedding)
    except UserError as error:
        raise UserError(f"ssdistill.encoder: {error}") from None
    maker = _maker(module)
    taps = dict(taps or {})
    sha256 = network_sha256(module, embedding, taps)
    if name is None:
        made_by = maker.func if isinstance(maker, partial) else maker
        plain = re.sub(r"\W", "", getattr(made_by, "__name__", type(made_by).__name__))
        name = f"{plain or 'network'}-{sha256[:8]}"  # two modules of one class are two networks
    build = partial(copy.deepcopy, module) if isinstance(module, nn.Module) else maker
    entry = Network(name, build, PROGRAM, embedding, taps, sha256)
    spec = EncoderSpec(
        name=name,
        image_size=image_size or input_size or DEFAULT_SIZE,
        input_size=input_size,
        mean=IMAGENET_MEAN if mean is None else tuple(map(float, mean)),
        std=IMAGENET_STD if std is None else tuple(map(float, std)),
        library=PROGRAM,
    )
    with added_for_a_trial(entry):
        made = encoder_from_spec(spec)
    MADE[made] = sha256, encoder_sha256(made)
    return made


def _maker(module: Any) -> Callable[..., nn.Module]:
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            "ssdistill.encoder: a scripted or traced module cannot be trained or compressed; pass "
            "the module that it was made of"
        )
    maker = type(module) if isinstance(module, nn.Module) else module
    if not callable(maker):
        raise UserError(
            f"ssdistill.encoder: expected a module, or a function that returns one, got "
            f"{shortened(repr(module))}"
        )
    return cast("Callable[..., nn.Module]", maker)


def _check_names(name: Any, taps: Any, embedding: Any) -> None:
    if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        raise UserError(
            f"name={shortened(repr(name))}: use letters, digits, '_', '-' and '.', such as my_net"
        )
    if taps is not None and not (
        isinstance(taps, Mapping)
        and all(isinstance(tap, str) and NAME.fullmatch(tap) for tap in taps)
        and all(isinstance(inner, str) for inner in taps.values())
    ):
        raise UserError(
            f"taps={shortened(repr(taps))}: pass names of inner modules by the names of taps, such "
            "as {'c4': 'body.layer3'}"
        )
    if embedding is not None and not callable(embedding):
        raise UserError(
            f"embedding={shortened(repr(embedding))}: pass a function of what the module returns, "
            "such as lambda out: out['pooled']"
        )


def _of_other_inputs(
    module: Any,
    example: Tensor,
    embedding: Callable[[Any], Tensor] | None,
    name: str | None,
    **of_images: Any,
) -> Wrapped:
    for key, value in of_images.items():
        if value is not None:
            raise UserError(
                f"ssdistill.encoder: {key} is for modules of images; remove it, or example"
            )
    if not isinstance(module, nn.Module):
        raise UserError(
            "ssdistill.encoder: with example, pass a module, not a function or class that makes one"
        )
    return Wrapped(module, example, name=name, embedding=embedding)


def check_is_known(network: Encoder) -> None:
    """Refuse a network whose name another one has got since, or whose layers have been removed.

    Raises:
        UserError: there is one, or they have.
    """
    made_of, now = MADE.get(network, ("", ""))[0], find_network(network.spec.name)
    if made_of and now is not None and now.sha256 != made_of:
        raise UserError(
            f"there are two networks with name='{network.spec.name}', and this is the older one; "
            "pass another name to ssdistill.encoder"
        )


def check_has_all_layers(network: Encoder) -> None:
    """Refuse to train a network that has been compressed.

    Raises:
        UserError: its weights are of other shapes than those of the network of its name.
    """
    found, whole = (
        {name: tensor.shape for name, tensor in net.state_dict().items()}
        for net in (network.net, network.fresh_net())
    )
    if found != whole:
        raise UserError(
            f"'{network.spec.name}' has been compressed, and training begins with all of its "
            "layers; pass the model that it was made of, or the step 'recover' to compress"
        )


def is_made_anew(network: Encoder) -> bool:
    """Whether an encoder is of a function or class, called for every seed, and untrained."""
    entry = find_network(network.spec.name)
    if entry is None or network not in MADE:
        return False
    copied = isinstance(entry.build, partial) and entry.build.func is copy.deepcopy
    return not copied and MADE[network][1] == encoder_sha256(network)


def stored_encoder(network: Encoder, root: str | Path) -> Path:
    """Keep the weights of an encoder in the runs folder; returns their folder.

    Args:
        root: the runs folder. Weights are in ``weights/<hash>`` below it, once.
    """
    folder = user_path(root) / WEIGHTS / encoder_sha256(network)[:16]
    if not (folder / DESCRIPTION).is_file():
        check_writable(folder / DESCRIPTION, "root")
        save_encoder(network, folder)
    return folder
