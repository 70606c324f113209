"""Every protocol as a function: ``ssdistill.evaluate.linear(encoder, data) -> Result``."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssdistill.data.labels import class_labels
from ssdistill.errors import UserError, nearest, shortened
from ssdistill.evaluate.labels import check_pair
from ssdistill.evaluate.opening.arguments import check_image_size, check_statistics
from ssdistill.evaluate.opening.encoders import open_encoder, own_size
from ssdistill.evaluate.opening.images import open_images
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.result import Result
from ssdistill.evaluate.subject import Embeddings, LabeledImages, Subject
from ssdistill.label_free.features import Precision
from ssdistill.settings import Size
from ssdistill.settings.registry import PROTOCOLS

log = logging.getLogger(__name__)


def open_subject(
    encoder: Any,
    data: Any = None,
    *,
    name: str | None = None,
    image_size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    root: str | Path = "runs",
    progress: bool = True,
    trust: bool = False,
) -> Subject:
    """Open an encoder and the images to evaluate it on.

    Protocols that are given one subject share its features, which are extracted once.

    Args:
        encoder: what :func:`ssdistill.evaluate.opening.encoders.open_encoder` takes; a subject; or
            None if ``data`` are two pairs of embeddings (N, D) and labels.
        data: what :func:`ssdistill.evaluate.opening.images.open_images` takes; omitted where
            ``encoder`` is a subject.
        name: what it is called in messages.
        image_size: side in pixels of the images it is given, or height and width; its own by
            default.
        mean, std: statistics that a bare ``.onnx`` file expects to be normalized by.
        device: where to encode and fit, ``auto`` for a GPU where there is one; by default
            where the encoder is.
        precision: of the encoding, ``fp32`` or ``bf16``.
        root: runs folder, below which decoded images are kept.
        progress: bars on the terminal.
        trust: open a model that is native code and was not compiled here.

    Raises:
        UserError: an encoder or data that cannot be opened, or that do not suit each other.
    """
    if isinstance(encoder, Subject):
        if data is not None:
            raise UserError("a subject has its own images: omit data")
        return encoder
    if encoder is None:
        return _of_embeddings(data, name or "embeddings", as_device(device), progress)
    if data is None:
        raise UserError("data: required; pass a kind, a path, settings, arrays or a dataset")
    image_size = check_image_size(image_size)
    check_statistics(mean, std)
    sizes = [size for size in (image_size or own_size(encoder),) if size]
    shown = open_images(data, sizes=sizes, root=root)
    own = {"image_size": image_size, "mean": mean, "std": std, "trust": trust}
    opened = open_encoder(encoder, shown.facts, **own)
    for notice in opened.notices_for(shown.train)[len(opened.notices) :]:
        log.warning("%s: %s", opened.source, notice)
    return Subject(
        opened.encoder,
        shown.train,
        shown.test,
        name=name or opened.source,
        image_size=opened.image_size or shown.image_size,
        device=as_device(device),
        precision=precision,
        progress=progress,
    )


def _of_embeddings(data: Any, name: str, device: torch.device | None, progress: bool) -> Subject:
    """A subject of embeddings, which are images of one pixel with as many channels."""
    pairs = [*data] if isinstance(data, list | tuple) else []
    sets = []
    for pair, split in zip(pairs, ("training", "test"), strict=False):
        z_ND = np.asarray(pair[0]) if isinstance(pair, list | tuple) and len(pair) == 2 else None
        if z_ND is None or z_ND.ndim != 2 or z_ND.dtype.kind != "f":
            break
        labels = class_labels(pair[1], f"data: {split} labels", len(z_ND))
        sets.append(LabeledImages(z_ND.astype(np.float32)[:, None, None], labels))
    if len(sets) != 2 or len(pairs) != 2 or sets[0].images.shape[3] != sets[1].images.shape[3]:
        raise UserError(
            "data: without an encoder, pass embeddings (N, D) of one width, and labels, as "
            "((z_train, y_train), (z_test, y_test))"
        )
    check_pair(sets[0].labels, sets[1].labels)
    return Embeddings(sets[0], sets[1], name=name, device=device, progress=progress)


def as_device(name: str | torch.device | None) -> torch.device | None:
    """Parse a device name; None if no device is named or ``auto`` finds no GPU.

    Raises:
        UserError: it is not a device, or not one of this machine.
    """
    if name is None or name == "auto":
        return torch.device("cuda") if name == "auto" and torch.cuda.is_available() else None
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"device={shortened(name)}: use auto, cpu, cuda, cuda:1, mps, …") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else "not available"
        raise UserError(f"device={name}: {reason}; use auto, or another one") from error
    return device


def build_protocol(kind: str, settings: Mapping[str, Any], name: str | None = None) -> Protocol:
    """Build a protocol from plain values.

    Args:
        kind: one of ``ssdistill list protocols``.
        settings: what is to differ from its defaults.
        name: what the settings stand below in messages; the kind by default.

    Raises:
        UserError: no such kind or setting, or a value it cannot have.
    """
    from ssdistill.settings.problems import validated

    _ = PROTOCOLS[kind]  # an unknown kind is refused with the nearest one
    schema = PROTOCOLS.schema(kind)
    return PROTOCOLS.build(validated(schema, {**settings, "kind": kind}, name or kind))


@cache
def protocol_function(kind: str) -> Callable[..., Result]:
    """The function of a protocol: an encoder, data and settings in, a Result out."""
    cls = PROTOCOLS[kind]
    opening = inspect.signature(open_subject).parameters
    own = [
        p
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    shared = [p for name, p in opening.items() if name not in {p.name for p in own}]

    def evaluate(encoder: Any, data: Any = None, **settings: Any) -> Result:
        names = {p.name for p in own}
        mine = {name: value for name, value in settings.items() if name in names}
        others = {name: value for name, value in settings.items() if name not in names}
        for name in others:
            if name not in opening:
                known = (*names, *(p.name for p in shared[2:]))
                raise UserError(
                    f"{kind} has no setting '{name}'{nearest(name, known)}; "
                    f"known: {', '.join(known)}"
                )
        protocol = build_protocol(kind, mine)
        return protocol.run(open_subject(encoder, data, **others))

    evaluate.__name__ = evaluate.__qualname__ = kind
    evaluate.__doc__ = (
        f"{inspect.getdoc(cls)}\n\n"
        "The encoder and the data are what ``open_subject`` takes, as are the settings that are\n"
        "not the protocol's: a path, a name or a function, and a kind, a path or arrays."
    )
    plain = inspect.Signature([*shared[:2], *own, *shared[2:]], return_annotation=Result)
    evaluate.__signature__ = plain
    return evaluate
