"""How the outputs of a teacher for the views of an image are laid out in a row of float16."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.models.representation import Representation

EMBEDDING, PROJECTION = "embedding", "projection"
LARGEST = torch.finfo(torch.float16).max
LOST_AT_MOST = 2.0**-10
"""Fraction of a batch's norm that rounding may cost: twice that of a rounded normal number."""


@dataclass(frozen=True)
class Column:
    """One output for one view.

    Attributes:
        view: number or name of the view.
        output: ``embedding``, ``projection`` or the name of a feature map.
        shape: of the output of one image.
        dtype: of the live output, such as ``bfloat16``.
    """

    view: int | str
    output: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"view {self.view}: {self.output} {size} {self.dtype}"


@dataclass(frozen=True)
class Layout:
    """The columns of a row, in order."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, outputs: Mapping[int | str, Representation]) -> "Layout":
        """Return the layout of live outputs by view."""
        return cls(
            tuple(
                Column(view, name, tuple(x.shape[1:]), str(x.dtype).removeprefix("torch."))
                for view, representation in outputs.items()
                for name, x in _tensors(representation).items()
            )
        )

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(prod(column.shape) for column in self.columns)

    def pack(self, outputs: Mapping[int | str, Representation], name: str) -> np.ndarray:
        """Return the outputs of B images as rows, (B, W) int16 with the bits of float16.

        Args:
            name: of the teacher, for messages.

        Raises:
            UserError: numbers that float16 cannot hold.
        """
        parts = []
        for column in self.columns:
            x_BK = _tensors(outputs[column.view])[column.output].flatten(1).float()
            half_BK = x_BK.to(torch.float16)
            _check_rounding(x_BK, half_BK, column, name)
            parts.append(half_BK)
        return torch.cat(parts, dim=1).view(torch.int16).cpu().numpy()

    def unpack(self, row_BW: Tensor) -> dict[int | str, Representation]:
        """Return the outputs of B images by view, of the dtypes that the live ones have.

        Args:
            row_BW: int16, the bits of float16.
        """
        row_BW = row_BW.view(torch.float16)
        tensors: dict[int | str, dict[str, Tensor]] = {}
        start = 0
        for column in self.columns:
            end = start + prod(column.shape)
            x_BK = row_BW[:, start:end].to(getattr(torch, column.dtype))
            tensors.setdefault(column.view, {})[column.output] = x_BK.unflatten(1, column.shape)
            start = end
        return {
            view: Representation(named.pop(EMBEDDING), named.pop(PROJECTION, None), named)
            for view, named in tensors.items()
        }


def _tensors(representation: Representation) -> dict[str, Tensor]:
    tensors = {EMBEDDING: representation.embedding_BD}
    if representation.projection_BP is not None:
        tensors[PROJECTION] = representation.projection_BP
    return tensors | representation.maps


def _check_rounding(x_BK: Tensor, half_BK: Tensor, column: Column, name: str) -> None:
    most = float(x_BK.abs().max())
    if not most <= LARGEST:  # NaN is not
        raise UserError(
            f"cache: teacher '{name}' gives {most:.3g} in its {column.output} of view "
            f"{column.view}, beyond float16 ({LARGEST:.0f}); set cache=null"
        )
    norm, lost = float(x_BK.norm()), float((half_BK.float() - x_BK).norm())
    if lost > LOST_AT_MOST * norm:
        raise UserError(
            f"cache: teacher '{name}' gives numbers of at most {most:.3g} in its {column.output} "
            f"of view {column.view}, of which float16 loses {lost / norm:.2%}; set cache=null"
        )
