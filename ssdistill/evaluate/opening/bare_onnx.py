"""Bare ONNX files, without a `model.json` that describes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.artifacts.runtimes.onnx_runtime import INPUT_TYPES, OnnxEncoder
from ssdistill.errors import UserError
from ssdistill.models.inputs import as_images
from ssdistill.models.representation import Representation
from ssdistill.settings import Size, as_size


class BareOnnx(OnnxEncoder):
    """A ``.onnx`` file from anywhere: its inputs and outputs are read from its graph.

    A graph with a fixed number of images is fed that many at a time, the last batch filled up
    with black ones.

    Args:
        path: the file.
        mean, std: what is to be done to images in [0, 1], per channel, before the file sees
            them; None where the file does it itself.

    Raises:
        UserError: ONNX Runtime cannot open it, it takes something else than one float or uint8
            batch (B, C, H, W), its first output is not (B, D), or mean and std are not one number
            a channel.

    Attributes:
        size: of the images it takes, in pixels; None where any will do.
    """

    def __init__(
        self,
        path: str | Path,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        self.statistics = None
        super().__init__(path, embed_dim=0)
        self.takes_images = True
        self.size = self._check_image_size()
        self.embed_dim = self._checked_width()
        if mean is not None and std is not None:
            if self.input_dtype == np.uint8:
                raise UserError(f"{self.path} takes uint8 images: omit mean and std")
            if self._channels not in (None, len(mean)):
                raise UserError(
                    f"{self.path} takes {self._channels} channels, but mean has {len(mean)} "
                    "numbers: write one for each"
                )
            self.statistics = tuple(torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))

    def __call__(self, x: Tensor) -> Representation:
        if self.statistics is not None:
            mean, std = self.statistics
            x = as_images(x, str(self.path), self._channels)
            x = (x - mean.to(x.device)) / std.to(x.device)
        return super().__call__(x)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        count, batch = len(inputs), self.session.get_inputs()[0].shape[0]
        if not isinstance(batch, int):
            return self._embedded(inputs)
        filled = np.zeros((-(-count // batch) * batch, *inputs.shape[1:]), inputs.dtype)
        filled[:count] = inputs
        parts = [self._embedded(filled[i : i + batch]) for i in range(0, len(filled), batch)]
        return np.concatenate(parts)[:count]

    def _embedded(self, inputs: np.ndarray) -> np.ndarray:
        embedding_BD = super()._run(inputs)
        if embedding_BD.ndim != 2 or len(embedding_BD) != len(inputs):
            raise self._wrong_output(embedding_BD.shape)
        return embedding_BD.astype(np.float32, copy=False)

    def _check_image_size(self) -> Size | None:
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise UserError(f"{self.path} has {len(inputs)} inputs ({names}); an encoder has one")
        kind, shape = inputs[0].type, inputs[0].shape
        if INPUT_TYPES.get(kind) not in (np.float32, np.uint8):
            raise UserError(f"{self.path} takes {kind}; an encoder takes float or uint8 images")
        # Names stand for sizes that are open.
        if len(shape) != 4 or 0 in shape or _channels_last(shape):
            raise UserError(
                f"{self.path} takes {_shown(shape)}; an encoder takes images (B, C, H, W)"
            )
        sides = [size for size in shape[2:] if isinstance(size, int)]
        return as_size(sides[0], sides[-1]) if sides else None

    def _checked_width(self) -> int:
        """Width of the embedding; 0 where the graph does not tell."""
        shape = self.session.get_outputs()[0].shape
        # An empty one says that nothing is known; then the first batch shows.
        if shape and len(shape) != 2:
            raise self._wrong_output(shape)
        return shape[1] if shape and isinstance(shape[1], int) else 0

    def _wrong_output(self, shape: Sequence[int | str | None]) -> UserError:
        name = self.session.get_outputs()[0].name
        return UserError(
            f"{self.path}: output '{name}' is {_shown(shape)}; an encoder returns (B, D): "
            "export the pooled features"
        )


def _channels_last(shape: Sequence[Any]) -> bool:
    """Whether the last axis is what few channels look like, and the second is not."""
    last, others = shape[3], [size for size in shape[1:3] if isinstance(size, int)]
    return last in (1, 3, 4) and any(size > 4 for size in others[:1])


def _shown(shape: Sequence[int | str | None]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
