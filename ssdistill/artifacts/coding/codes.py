"""Codes that store a weight in fewer bits than its values take.

This changes the file, not the network: decoded, a weight is a float tensor like any other.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssdistill.artifacts.coding.packing import WIDEST
from ssdistill.errors import UserError

MOST = 2**WIDEST
"""Numbers in the largest codebook."""


class Coded(ABC):
    """A weight in coded form.

    A subclass sets:
        kind: name of the form in files.

    Attributes:
        shape: of the weight; its first axis are the output channels.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight; output channels come first."""

    @abstractmethod
    def decode(self) -> Tensor:
        """The weight, float32 and exactly the same at every call."""

    @property
    def book(self) -> Tensor | None:
        """The codebook, which several weights may share; None for a kind without."""
        return None


@dataclass(frozen=True, eq=False)
class Palette(Coded):
    """Palette code: every value is one of K codebook entries.

    Attributes:
        codebook: float (K,), or (C, K) with one row per output channel; at most 256 numbers.
            Weights that are given the very same tensor share it in the file too.
        index: integers of the weight's shape, each below K.

    Raises:
        UserError: a codebook or an index that is none.
    """

    codebook: Tensor
    index: Tensor
    kind = "palette"

    def __post_init__(self) -> None:
        _check_book(self.codebook, self.index, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.index.shape)

    @property
    def book(self) -> Tensor | None:
        return self.codebook

    def decode(self) -> Tensor:
        index, book = self.index.long(), self.codebook.float()
        if book.ndim == 1:
            return book[index]
        return book.gather(1, index.flatten(1)).view(self.shape)


@dataclass(frozen=True, eq=False)
class Uniform(Coded):
    """Evenly spaced numbers: ``(integers - zero) * scale``.

    Attributes:
        scale: float (C,), one number per output channel, or (1,) for all.
        zero: numbers as many, what stands for zero, whole or not; None where that is 0.
        integers: of the weight's shape, ``2**bits`` different ones from ``low`` on; ``low`` is
            ``-2**(bits - 1)`` without ``zero``, and 0 with it.
        bits: 1 to 8.

    Raises:
        UserError: integers out of this range.
    """

    scale: Tensor
    zero: Tensor | None
    integers: Tensor
    bits: int
    kind = "uniform"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= WIDEST:
            raise UserError(f"bits must be between 1 and {WIDEST}, got {self.bits}")
        least, most = (int(f()) for f in (self.integers.min, self.integers.max))
        if least < self.low or most >= self.low + 2**self.bits:
            raise UserError(f"integers from {least} to {most} do not fit in {self.bits} bits")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.integers.shape)

    @property
    def low(self) -> int:
        return 0 if self.zero is not None else -(2 ** (self.bits - 1))

    def decode(self) -> Tensor:
        column = (-1, *[1] * (len(self.shape) - 1))
        integers = self.integers.float()
        if self.zero is not None:
            integers = integers - self.zero.float().view(column)
        return integers * self.scale.float().view(column)


@dataclass(frozen=True, eq=False)
class Sparse(Coded):
    """Sparse code: the nonzero numbers and their positions.

    Attributes:
        mask: bool of the weight's shape, True where a number is kept.
        values: float (N,), the kept numbers in the order of the flattened weight; with an
            ``index``, a codebook as a :class:`Palette` has one.
        index: integers (N,), which number of the codebook each of them is.

    Raises:
        UserError: another count of numbers than the mask has.
    """

    mask: Tensor
    values: Tensor
    index: Tensor | None = None
    kind = "sparse"

    def __post_init__(self) -> None:
        numbers = self.values if self.index is None else self.index
        if numbers.shape != (int(self.mask.sum()),):
            raise UserError(
                f"got values of shape {tuple(numbers.shape)} for {int(self.mask.sum())} nonzero "
                "entries"
            )
        if self.index is not None:
            _check_book(self.values, self.index, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mask.shape)

    @property
    def book(self) -> Tensor | None:
        return self.values if self.index is not None else None

    def kept(self) -> Tensor:
        """Values (N,) that are stored: those not masked out."""
        if self.index is None:
            return self.values.float()
        if self.values.ndim == 1:
            return self.values.float()[self.index.long()]
        channel = self.mask.flatten(1).nonzero()[:, 0]
        return self.values.float()[channel, self.index.long()]

    def decode(self) -> Tensor:
        return torch.zeros(self.shape).masked_scatter(self.mask, self.kept())


def refresh(coded: Coded, weight: Tensor) -> Coded | None:
    """Code a changed weight again; None if its values no longer fit the code.

    A sparse one stays sparse as long as its zeros are zeros, whatever the other numbers became.
    """
    weight = weight.detach().cpu()
    if tuple(weight.shape) != coded.shape:
        return None
    if torch.equal(coded.decode().to(weight.dtype), weight):
        return coded
    if isinstance(coded, Sparse) and not weight[~coded.mask].any():
        return Sparse(coded.mask, weight[coded.mask])
    return None


def _check_book(book: Tensor, index: Tensor, shape: tuple[int, ...]) -> None:
    rows = book.ndim == 1 or (book.ndim == 2 and len(shape) and book.shape[0] == shape[0])
    if not rows or not 1 <= book.shape[-1] <= MOST:
        raise UserError(
            f"a codebook must hold 1 to {MOST} values, or as many for each of {shape[:1]} output "
            f"channels, got shape {tuple(book.shape)}"
        )
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < book.shape[-1]:
        raise UserError(
            f"index {int(index.max())} is out of range for a codebook of {book.shape[-1]} values"
        )
