"""Blocks to predict and a context without them, as I-JEPA draws both (arXiv:2301.08243)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform
from ssdistill.errors import UserError

_SIZE, _PLACE = 0x73697A65, 0x706C6163
"""View numbers for random draws of the sizes of blocks, and of their places."""


@dataclass(frozen=True)
class MultiBlock:
    """How blocks are drawn; the defaults are those of the paper (sec. 3 and app. A).

    All blocks of a batch that are to be predicted have one size, all contexts have another, each
    from one number: within their bounds, a larger block is also a higher one. Their places
    differ. After :attr:`tries` places with too small a context, the last block may have patches in
    common with it, then the last two, and so on.

    The authors' code never places a block at the last row or column, so that it neither predicts
    nor encodes the patches there; nor does this unless :attr:`edges` is set.

    Attributes:
        targets: blocks to predict.
        target_scale: fraction of the patches in each, from and to.
        target_aspect: its height / width, from and to.
        context_scale, context_aspect: the same of the context, before the targets are removed.
        smallest: the context must have more patches than that.
        tries: places of the context with as many blocks removed.
        edges: whether blocks may touch the last row and column.
    """

    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_aspect: tuple[float, float] = (1.0, 1.0)
    smallest: int = 10
    tries: int = 20
    edges: bool = False

    def check(self, grid: tuple[int, int]) -> None:
        """Refuse a grid in which there is no such context.

        Raises:
            UserError: fewer than two rows or columns, or contexts that are always too small.
        """
        rows, columns = grid
        if min(grid) < 2:
            raise UserError(f"blocks need several rows and columns of patches, not {grid}")
        least = min(
            math.prod(_sides(grid, self.context_scale, self.context_aspect, draw))
            for draw in (0.0, 1.0)
        )
        if least <= self.smallest:
            raise UserError(
                f"a context of {least} of the {rows} x {columns} patches is not more than "
                f"smallest={self.smallest}; lower it, or use more patches"
            )

    def draw(self, batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the numbers of the patches, row by row, of contexts and of targets.

        All contexts are cut to the shortest of the batch, over all processes, from the end: the
        larger a batch, the fewer patches it keeps. Sizes depend on the step, places on the step
        and on the image's position in the batch.

        Returns:
            context (B, C) and targets (T, B, K), int64, ascending.
        """
        whole, rows = batch.place
        device = batch.index_B.device
        size_S2 = uniform(batch.step, 0, torch.arange(1, device=device), _SIZE, 2).tolist()[0]
        target_sides = _sides(grid, self.target_scale, self.target_aspect, size_S2[0])
        context_sides = _sides(grid, self.context_scale, self.context_aspect, size_S2[1])
        place_B = torch.arange(whole, device=device)
        draw_BK = uniform(batch.step, 0, place_B, _PLACE, 2 * self.targets)
        inside_TBN = torch.stack(
            [
                self._rectangle(draw_BK[:, 2 * k : 2 * k + 2], target_sides, grid)
                for k in range(self.targets)
            ]
        )
        context_BN = self._contexts(batch.step, inside_TBN, context_sides, grid)
        shortest = int(context_BN.sum(1).min())
        context_BC = (~context_BN).byte().argsort(dim=1, stable=True)[:, :shortest]
        count = math.prod(target_sides)
        target_TBK = (~inside_TBN).byte().argsort(dim=2, stable=True)[:, :, :count]
        return context_BC[rows], target_TBK[:, rows]

    def _contexts(
        self, step: int, inside_TBN: Tensor, sides: tuple[int, int], grid: tuple[int, int]
    ) -> Tensor:
        """Patches of every image's context, (B, N) bool."""
        found_BN = torch.zeros_like(inside_TBN[0])
        row_A = torch.arange(len(found_BN), device=found_BN.device)
        for attempt in range(self.tries * (self.targets + 1)):
            # 2 * targets numbers are those of the targets.
            number = _PLACE + ((attempt + 1) << 32)
            draw_A2 = uniform(step, 0, row_A, number, 2)
            removed = inside_TBN[: self.targets - attempt // self.tries, row_A].any(0)
            context_AN = self._rectangle(draw_A2, sides, grid) & ~removed
            large_A = context_AN.sum(1) > self.smallest
            found_BN[row_A[large_A]] = context_AN[large_A]
            row_A = row_A[~large_A]
            if not len(row_A):
                break
        return found_BN

    def _rectangle(self, draw_B2: Tensor, sides: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Patches of a rectangle of these sides somewhere, (B, N) bool."""
        inside = []
        for axis, (side, length) in enumerate(zip(sides, grid, strict=True)):
            places = length - side + (1 if self.edges else 0)
            first_B1 = (draw_B2[:, axis, None] * places).floor()
            position_L = torch.arange(length, device=draw_B2.device)
            inside.append((position_L >= first_B1) & (position_L < first_B1 + side))
        inside_BH, inside_BW = inside
        return (inside_BH[:, :, None] & inside_BW[:, None]).flatten(1)


def _sides(
    grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], draw: float
) -> tuple[int, int]:
    """Height and width of a block, each less than that of the grid."""
    (low, high), (flat, tall) = scale, aspect
    area = int(math.prod(grid) * (low + draw * (high - low)))
    ratio = flat + draw * (tall - flat)
    lengths = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    rows, columns = (max(1, min(a, b - 1)) for a, b in zip(lengths, grid, strict=True))
    return rows, columns
