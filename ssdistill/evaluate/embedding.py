"""Embed images with any encoder: open both, and write a file or return an array."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from ssdistill.data.image_set import ImageSet
from ssdistill.errors import UserError, shortened
from ssdistill.evaluate.functions import as_device
from ssdistill.evaluate.opening.encoders import Opened, open_encoder, own_size
from ssdistill.evaluate.opening.identity import model_sha256
from ssdistill.evaluate.opening.unlabeled import Unlabeled, open_unlabeled
from ssdistill.files import check_writable, user_path
from ssdistill.label_free.embedding.batches import Encoding
from ssdistill.label_free.embedding.embedded import Embedded
from ssdistill.label_free.embedding.formats import format_of
from ssdistill.label_free.embedding.in_memory import embeddings_of
from ssdistill.label_free.embedding.layers import check_layer
from ssdistill.label_free.embedding.neighbors import check_topk
from ssdistill.label_free.embedding.partial import refuse_existing
from ssdistill.label_free.embedding.parts import Part
from ssdistill.label_free.embedding.writing import write_embeddings
from ssdistill.label_free.encoding import (
    Precision,
    check_precision,
    default_batch_size,
    target_of,
)
from ssdistill.settings import Size, as_size, short_size

Layer = Literal["embedding", "projection", "patch"]
Split = Literal["train", "test", "all"]
BLOCK = 1 << 24
"""Bytes of an array that are hashed at a time."""


class Options(TypedDict, total=False):
    """What :func:`embed` takes by name."""

    layer: Layer
    split: Split
    normalize: bool
    half: bool
    topk: int | None
    batch_size: int | None
    image_size: Size | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    device: str | None
    precision: Precision
    data_settings: Mapping[str, Any] | None
    root: str | Path
    force: bool
    progress: bool
    trust: bool


@overload
def embed(model: Any, data: Any, out: str | Path, **options: Unpack[Options]) -> Embedded: ...


@overload
def embed(
    model: Any, data: Any, out: None = None, **options: Unpack[Options]
) -> tuple[np.ndarray, list[str]]: ...


def embed(
    model: Any,
    data: Any,
    out: str | Path | None = None,
    *,
    layer: Layer = "embedding",
    split: Split = "all",
    normalize: bool = False,
    half: bool = False,
    topk: int | None = None,
    batch_size: int | None = None,
    image_size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | None = "auto",
    precision: Precision = "fp32",
    data_settings: Mapping[str, Any] | None = None,
    root: str | Path = "runs",
    force: bool = False,
    progress: bool = True,
    trust: bool = False,
) -> Embedded | tuple[np.ndarray, list[str]]:
    """Embed images, as ``ssdistill embed`` does; :func:`ssdistill.embed` describes the arguments.

    Raises:
        UserError: anything that cannot be opened, encoded or written.
    """
    began = time.monotonic()
    check_layer(layer)
    check_precision(precision)
    _check_batch_size(batch_size)
    file = None if out is None else user_path(out)
    check_topk(topk, layer)
    if file is not None:
        # Before anything is decoded.
        format_of(file, layer)
        refuse_existing(file, [file], force)
        check_writable(file, "out")
    elif topk is not None:
        raise UserError("topk writes neighbors to a file: pass out")
    torch_device = as_device(device)
    sizes = [size] if (size := image_size or own_size(model)) else []
    opened_data = open_unlabeled(data, data_settings, split=split, sizes=sizes, root=root)
    opened = open_encoder(
        model, opened_data.shown.facts, image_size=image_size, mean=mean, std=std, trust=trust
    )
    target = target_of(opened.encoder, torch_device)
    encoding = Encoding(
        opened.source,
        opened.image_size or opened_data.shown.image_size,
        target,
        batch_size or default_batch_size(target),
        layer,
        normalize,
        half,
        precision,
    )
    parts = _parts(opened_data, hashed=file is not None)
    if file is None:
        return embeddings_of(opened.encoder, parts, encoding, progress)
    key = _key(opened, mean, std)
    written = write_embeddings(
        opened.encoder, parts, file, encoding, key, topk=topk, force=force, progress=progress
    )
    seconds = time.monotonic() - began
    notices = _notices(opened, opened_data, encoding)
    return replace(written, seconds=seconds, notices=notices)


def _check_batch_size(batch_size: Any) -> None:
    if batch_size is None or (type(batch_size) is int and batch_size > 0):
        return
    raise UserError(f"batch_size={shortened(repr(batch_size))}: write a whole number from 1")


def _parts(data: Unlabeled, hashed: bool) -> list[Part]:
    return [
        Part.of(images)
        if isinstance(images, ImageSet)
        else Part(split, images, "{:06d}".format, _sha256(images) if hashed else "")
        for split, images in data.sets.items()
    ]


def _sha256(images: np.ndarray) -> str:
    digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
    step = max(1, BLOCK // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        digest.update(np.ascontiguousarray(images[start : start + step]).data)
    return digest.hexdigest()


def _key(opened: Opened, mean: Any, std: Any) -> dict[str, Any]:
    """Return what rows depend on beside the images and the encoding."""
    return {
        "model": model_sha256(opened),
        "mean": None if mean is None else [float(value) for value in mean],
        "std": None if std is None else [float(value) for value in std],
        "ssdistill": version("ssdistill"),
        "torch": version("torch"),
    }


def _notices(opened: Opened, data: Unlabeled, encoding: Encoding) -> tuple[str, ...]:
    notices = list(opened.notices_for(data.shown.train))
    height, width = data.shown.train.images.shape[1:3]
    if (size := as_size(height, width)) != encoding.image_size:
        taken = short_size(encoding.image_size)
        notices.append(f"images of {short_size(size)} pixels are resized to {taken}")
    return tuple(notices)
