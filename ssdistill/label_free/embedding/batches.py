"""Encode images batch by batch; the next batch is read while one is encoded."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.data.views import eval_view
from ssdistill.errors import UserError, shown
from ssdistill.label_free.embedding.layers import layer_of
from ssdistill.label_free.embedding.parts import Part
from ssdistill.label_free.encoding import (
    Precision,
    cast_to,
    check_images,
    check_range,
    evaluating,
)
from ssdistill.settings import Size


@dataclass(frozen=True)
class Encoding:
    """How images become rows.

    Attributes:
        name: of the encoder, for messages.
        image_size: in pixels that the encoder is given.
        device: where to encode.
        batch_size: images encoded at a time.
        layer: one of :data:`ssdistill.label_free.embedding.layers.LAYERS`.
        normalize: divide each vector by its Euclidean length.
        half: write float16.
        precision: ``bf16`` encodes under autocast.
    """

    name: str
    image_size: Size
    device: torch.device
    batch_size: int
    layer: str = "embedding"
    normalize: bool = False
    half: bool = False
    precision: Precision = "fp32"

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""
        return np.dtype(np.float16 if self.half else np.float32)


def encoded(
    encoder: Any, part: Part, encoding: Encoding, start: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the rows of each batch, from the image at ``start`` on, and where the batch begins.

    Rows of images that cannot be decoded are among them; see :attr:`Part.failed`.

    Args:
        start: a multiple of the batch size, so that batches are those of a whole pass.

    Raises:
        UserError: images that the encoder does not take, a layer that it does not have, or
            output that is no row of finite numbers for each image.
    """
    check_images(part.images, encoder)
    compute = layer_of(encoder, encoding.layer, encoding.name)
    starts = range(start, len(part), encoding.batch_size)
    shape: tuple[int, ...] | None = None
    with (
        evaluating(encoder, encoding.device),
        ThreadPoolExecutor(1, "reading images") as pool,
    ):

        def read(at: int) -> Any:
            return pool.submit(part.images.__getitem__, slice(at, at + encoding.batch_size))

        following = read(starts[0]) if starts else None
        for at in starts:
            images_BHWC = following.result() if following else ()
            following = read(at + encoding.batch_size) if at != starts[-1] else None
            # Not around the yield: the mode would be that of whoever takes the rows, too.
            with torch.inference_mode(), cast_to(encoding.device, encoding.precision):
                z = compute(_view(images_BHWC, encoding))
            rows = _rows(z, len(images_BHWC), shape, encoding)
            shape = rows.shape[1:]
            _check_finite(rows, part, at, encoding)
            yield rows, at


def _view(images_BHWC: Any, encoding: Encoding) -> Tensor:
    check_range(images_BHWC)
    # A copy: what a read-only map lends must not become a writable tensor.
    images = torch.from_numpy(np.array(images_BHWC)).to(encoding.device)
    x_BCHW = eval_view(images, encoding.image_size)
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def _rows(z: Any, count: int, shape: tuple[int, ...] | None, encoding: Encoding) -> np.ndarray:
    dims = 3 if encoding.layer == "patch" else 2
    fits = isinstance(z, Tensor) and z.ndim == dims and len(z) == count and z.numel() > 0
    if not fits or z.is_complex() or shape not in (None, tuple(z.shape[1:])):
        found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        expected = ", ".join(map(str, (count, *(shape or "TD"[-dims + 1 :]))))
        raise UserError(
            f"{encoding.name} gave {found} for {count} images; it must return real numbers "
            f"({expected})"
        )
    z = z.float()
    if encoding.normalize:
        z = functional.normalize(z, dim=-1)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(z.cpu().numpy().astype(encoding.dtype))


def _check_finite(rows: np.ndarray, part: Part, start: int, encoding: Encoding) -> None:
    finite_B = np.isfinite(rows).reshape(len(rows), -1).all(1)
    if finite_B.all():
        return
    at = start + int(np.argmin(finite_B))
    name = shown(part.name_of(int(part.rows(at, at + 1)[0])))
    reason = "the encoder diverged or was run outside its precision; use another model"
    if encoding.half:
        reason = "beyond float16, or the encoder diverged; write float32, or normalize vectors"
    raise UserError(f"{encoding.name}: the {encoding.layer} of {name} is not finite ({reason})")
