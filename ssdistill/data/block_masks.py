"""Masks of rectangular blocks, as BEiT (arXiv:2106.08254), iBOT and DINOv2 draw them."""

import itertools
import math

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform
from ssdistill.errors import UserError

_BLOCK, _REST = 0x626C6F63, 0x72657374
"""View numbers for random draws of blocks, and of single patches beside them."""
ASPECTS = (0.3, 1 / 0.3)


def block_masks(
    batch: Batch,
    view: int,
    target_B: Tensor,
    grid: tuple[int, int],
    *,
    smallest: float = 4,
    largest: float | None = None,
    aspects: tuple[float, float] = ASPECTS,
    tries: int = 10,
    complete: bool = False,
) -> Tensor:
    """Mask rectangles of patches until about ``target_B`` of them are masked.

    The area of a rectangle is uniform from ``smallest`` to the patches that are still missing,
    the logarithm of height / width is uniform. It counts if it masks at least one more patch and
    no more than are missing; after ``tries`` that do not, no further one is looked for. The
    defaults are those of DINOv2 (arXiv:2304.07193), whose masks often end a patch below the
    target. iBOT (arXiv:2111.07832) sets ``smallest`` to the square of a third of the shorter
    side. No rectangle is as high or as wide as the grid.

    Draws depend on step and image alone, so that a resumed run, and any number of processes,
    draw the same.

    Args:
        batch: of B images.
        view: number of the view; each has its own masks.
        target_B: how many patches to mask, a number that may have a fraction; 0 masks none.
        grid: rows and columns of patches.
        smallest: area of the smallest rectangle, in patches.
        largest: most patches that one rectangle may mask; any number by default.
        aspects: lowest and highest height / width.
        tries: rectangles that are drawn before giving up.
        complete: mask random patches beside the rectangles until exactly ``target_B`` (rounded
            down) are masked, as DINOv3 does (arXiv:2508.10104).

    Returns:
        (B, rows * columns) bool, true where masked.

    Raises:
        UserError: a grid of one row or column, in which there are no rectangles.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise UserError(f"masks of blocks need several rows and columns, not {rows} x {columns}")
    device, number_B = batch.index_B.device, batch.number_B
    target_B = target_B.to(device, torch.float64)
    masked_BHW = torch.zeros(len(target_B), rows, columns, dtype=torch.bool, device=device)
    left_B, failed_B = target_B.clone(), torch.zeros_like(number_B)
    for attempt in itertools.count():
        row_A = ((left_B > 0) & (failed_B < tries)).nonzero()[:, 0]
        if not len(row_A):
            break
        room_A = left_B[row_A] if largest is None else left_B[row_A].clamp(max=largest)
        # A sequence of its own for every attempt: numbers must not depend on how many there are.
        number = _number(_BLOCK, view, attempt)
        draw_A4 = uniform(batch.step, batch.epoch, number_B[row_A], number, 4)
        inside_AHW, possible_A = _rectangles(draw_A4, smallest, room_A, aspects, grid)
        more_AHW = inside_AHW & ~masked_BHW[row_A]
        count_A = more_AHW.sum((1, 2))
        taken_A = possible_A & (count_A > 0) & (count_A <= room_A)
        masked_BHW[row_A] |= more_AHW & taken_A[:, None, None]
        left_B[row_A] -= torch.where(taken_A, count_A, 0)
        failed_B[row_A] = torch.where(taken_A, 0, failed_B[row_A] + 1)
    masked_BN = masked_BHW.flatten(1)
    return _completed(batch, view, masked_BN, target_B.long()) if complete else masked_BN


def _rectangles(
    draw_A4: Tensor,
    smallest: float,
    largest_A: Tensor,
    aspects: tuple[float, float],
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Patches of one rectangle each (A, H, W), and whether it is smaller than the grid (A,)."""
    rows, columns = grid
    y_H, x_W = (torch.arange(side, device=draw_A4.device) for side in grid)
    area_A = smallest + draw_A4[:, 0] * (largest_A - smallest)
    low, high = map(math.log, aspects)
    aspect_A = (low + draw_A4[:, 1] * (high - low)).exp()
    high_A, wide_A = (area_A * aspect_A).sqrt().round(), (area_A / aspect_A).sqrt().round()
    top_A = (draw_A4[:, 2] * (rows - high_A + 1)).floor()[:, None]
    first_A = (draw_A4[:, 3] * (columns - wide_A + 1)).floor()[:, None]
    inside_AH = (y_H >= top_A) & (y_H < top_A + high_A[:, None])
    inside_AW = (x_W >= first_A) & (x_W < first_A + wide_A[:, None])
    return inside_AH[:, :, None] & inside_AW[:, None], (high_A < rows) & (wide_A < columns)


def _completed(batch: Batch, view: int, masked_BN: Tensor, target_B: Tensor) -> Tensor:
    """Mask further patches at random until ``target_B`` are masked."""
    number = _number(_REST, view)
    order_BN = uniform(batch.step, batch.epoch, batch.number_B, number, masked_BN.shape[1])
    rank_BN = (order_BN - masked_BN.double()).argsort(dim=1, stable=True).argsort(dim=1)
    return masked_BN | (rank_BN < target_B[:, None])


def _number(tag: int, view: int, attempt: int = 0) -> int:
    return (tag << 32) + (view << 20) + attempt
