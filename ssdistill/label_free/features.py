"""Extract the features of a whole store once, for all probes."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from rich import get_console
from rich.progress import track
from torch import Tensor, nn

from ssdistill.data.views import eval_view
from ssdistill.distributed import ALONE, Assembled, Team, each, is_shared
from ssdistill.errors import UserError
from ssdistill.label_free.encoding import (
    Precision,
    cast_to,
    check_images,
    check_precision,
    check_range,
    default_batch_size,
    evaluating,
    target_of,
)
from ssdistill.label_free.rows import piece_rows
from ssdistill.models.representation import Representation
from ssdistill.settings import Size


def extract(
    encoder: Callable[[Tensor], Representation],
    images_NHWC: np.ndarray | Tensor,
    image_size: Size,
    *,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    progress: bool = True,
    out: Callable[[int, int], Tensor] = torch.empty,
    team: Team = ALONE,
) -> Tensor:
    """Return embeddings of all images, in order, under the deterministic evaluation view.

    A PyTorch encoder is used in eval mode and gets every module's own mode back afterwards, so
    neither its buffers nor its mode change. It is moved to ``device`` for the duration.

    Args:
        encoder: anything that maps float BCHW images in [0, 1] to a Representation.
        images_NHWC: uint8 pixels, or float32 in [0, 1]; a memory map is read batch by batch.
        image_size: in pixels that the encoder is given.
        batch_size: images encoded at a time; by default 64 on a CPU, whose caches hold no more
            and whose allocator gives larger tensors back each time, and 512 elsewhere.
        device: where to encode; default: where the encoder is.
        precision: ``bf16`` encodes under autocast; embeddings come back as float32 either way.
        progress: a bar on the terminal (none where the output is not one).
        out: makes the float32 (N, D) tensor to be filled, such as one mapped to a file, once D
            is known.
        team: processes that encode whole batches by turns: the numbers are those of one. A single
            batch, and what a runtime encodes on all cores by itself, is left to process 0.

    Returns:
        embedding_ND, float32 on the CPU: what ``out`` made; no rows except in process 0.

    Raises:
        UserError: no images, pixels that are neither uint8 nor float32 in [0, 1], other channels
            than the encoder takes, or an unknown precision.
    """
    check_images(images_NHWC, encoder)
    check_precision(precision)
    target = target_of(encoder, device)
    batch_size = batch_size or default_batch_size(target)
    if not isinstance(encoder, nn.Module) or len(images_NHWC) <= batch_size:
        team = team if isinstance(team, Assembled) else ALONE
    arguments = encoder, images_NHWC, image_size, batch_size, target, precision
    return team.do(_extract, *arguments, progress=progress, out=out)


def _extract(
    encoder: Callable[[Tensor], Representation],
    images_NHWC: np.ndarray | Tensor,
    image_size: Size,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    *,
    progress: bool = False,
    out: Callable[[int, int], Tensor] = torch.empty,
) -> Tensor:
    def encode(start: int) -> Tensor:
        part = images_NHWC[start : start + batch_size]
        check_range(part)
        # A copy: what a read-only map lends must not become a writable tensor.
        images_BHWC = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        x_BCHW = eval_view(images_BHWC.to(device), image_size)
        z_BD = encoder(x_BCHW.contiguous(memory_format=torch.channels_last)).embedding_BD
        _check_rows(z_BD, len(part))
        return sendable(z_BD)

    starts = range(0, len(images_NHWC), batch_size)
    embedding_ND: Tensor | None = None
    with evaluating(encoder, device), torch.inference_mode(), cast_to(device, precision):
        for start, z_BD in _tracked(each(starts, encode, UserError), len(starts), progress):
            if embedding_ND is None:
                # A tensor made in inference mode could be fed to nothing that differentiates.
                with torch.inference_mode(False):
                    embedding_ND = out(len(images_NHWC), z_BD.shape[1])
            _check_rows(z_BD, len(z_BD), embedding_ND.shape[1])
            embedding_ND[start : start + len(z_BD)] = z_BD
    return torch.empty(0, 0) if embedding_ND is None else embedding_ND


def sendable(z_BD: Tensor) -> Tensor:
    """Return rows as float32 on the CPU, alone in their memory where they are to be sent."""
    z_BD = z_BD.float().cpu()
    return z_BD.clone(memory_format=torch.contiguous_format) if is_shared() else z_BD


def _check_rows(z_BD: Tensor, count: int, width: int | None = None) -> None:
    """Raise UserError unless an encoder gave one row of real numbers for each image.

    Args:
        count: of images.
        width: of the rows it gave before; None for any.
    """
    is_plain = z_BD.layout is torch.strided and not z_BD.is_meta and not z_BD.is_complex()
    fits = z_BD.ndim == 2 and len(z_BD) == count and width in (None, z_BD.shape[1])
    if not (is_plain and fits):
        facts = f"{z_BD.dtype} on {z_BD.device}" if fits else f"shape {tuple(z_BD.shape)}"
        expected = f"({count}, {'D' if width is None else width})"
        raise UserError(
            f"the encoder gave {facts} for {count} images; it must return one row of real numbers "
            f"for each, {expected}"
        )


def as_features(features: Any, name: str) -> Tensor:
    """Return ``features`` as a finite float32 (N, D) tensor, on their own device.

    Raises:
        UserError: it is empty, not two-dimensional, or has NaN or infinite values.
    """
    z_ND = torch.as_tensor(features).detach().float()
    if z_ND.ndim != 2 or z_ND.numel() == 0:
        raise UserError(f"{name} must be a non-empty (N, D) array, got {tuple(z_ND.shape)}")
    pieces = z_ND.split(piece_rows(z_ND.shape[1]))
    broken = sum((~torch.isfinite(piece_nD).all(1)).sum().item() for piece_nD in pieces)
    if broken:
        raise UserError(
            f"{name} have NaN or infinite values in {broken} of {len(z_ND)} rows: "
            "the encoder diverged or was run outside its precision"
        )
    return z_ND


def as_feature_pair(train_ND: Any, test_ND: Any) -> tuple[Tensor, Tensor]:
    """Validate training and test features; both are put where the training features are.

    Raises:
        UserError: they differ in width, or see :func:`as_features`.
    """
    train_ND = as_features(train_ND, "training features")
    test_ND = as_features(test_ND, "test features").to(train_ND.device)
    if train_ND.shape[1] != test_ND.shape[1]:
        raise UserError(
            f"training and test features differ in width: {train_ND.shape[1]} and "
            f"{test_ND.shape[1]}"
        )
    return train_ND, test_ND


def _tracked(
    parts: Iterable[tuple[int, Tensor]], count: int, progress: bool
) -> Iterable[tuple[int, Tensor]]:
    shown = progress and get_console().is_terminal
    return track(parts, "encoding", total=count, transient=True, disable=not shown)
