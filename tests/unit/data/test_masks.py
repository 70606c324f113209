"""Masks against the distributions of the authors' generators, and what resuming requires."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from ssdistill.data.batch import Batch
from ssdistill.data.block_masks import block_masks
from ssdistill.data.masking import mask_fractions, random_masks
from ssdistill.data.multi_block_masks import MultiBlock
from ssdistill.errors import UserError

BLOCKS = [
    # Grid, target, smallest and largest rectangle, completed: mean and standard deviation of the
    # masked patches, fraction of edges and of the four in the center that are masked, neighboring
    # pairs per masked patch, connected parts. 4000 draws (14 x 14) or 2000 of
    # facebookresearch/dinov2@b8931f7b, facebookresearch/dinov3@6876159a, bytedance/ibot@da316d82.
    ((14, 14), 19, 4, 98, False, 18.899, 0.304, 0.0454, 0.1448, 1.2499, 2.452),
    ((14, 14), 58, 4, 98, False, 57.931, 0.262, 0.1188, 0.5245, 1.5619, 2.485),
    ((14, 14), 98, 4, 98, False, 97.914, 0.317, 0.2198, 0.8344, 1.6794, 1.987),
    ((8, 8), 19, 4, 32, False, 18.9495, 0.219, 0.1735, 0.4964, 1.312, 1.7905),
    ((16, 16), 76, 4, 128, True, 76, 0, 0.1087, 0.5275, 1.6078, 2.7405),
    ((14, 14), 58, 4, 98, True, 58, 0, 0.1182, 0.5281, 1.5628, 2.5085),
    ((14, 14), 58.8, 16, None, False, 57.261, 1.251, 0.1019, 0.5757, 1.6453, 1.335),
]
MULTI = [
    # Grid, smallest context: mean patches of the context and of one target, union of the targets.
    # 100 batches of 16 images of facebookresearch/ijepa@52c1ae95.
    ((16, 16), 10, 81.5, 44.24, 115.11),
    ((14, 14), 10, 59.56, 33.28, 87.21),
    ((8, 8), 4, 14.14, 10.74, 27.63),
]


def images(count, step=0):
    return Batch(None, torch.arange(count), 0, step, 100)


def parts(batch, sizes):
    """The parts of a batch, as micro-batches see them."""
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        yield dataclasses.replace(
            batch, index_B=batch.index_B[rows], first=start, whole=len(batch.index_B)
        )
        start += size


@pytest.mark.parametrize("row", BLOCKS, ids=lambda row: f"{row[0][0]}-{row[1]}-{row[2]}-{row[4]}")
def test_blocks_are_distributed_as_the_authors_generators_draw_them(row):
    grid, target, smallest, largest, complete, mean, std, edge, center, pairs, components = row
    masks = [
        block_masks(
            images(2000, step),
            0,
            torch.full((2000,), float(target)),
            grid,
            smallest=smallest,
            largest=largest,
            complete=complete,
        )
        for step in range(2)
    ]
    masked_BHW = torch.cat(masks).view(-1, *grid).numpy()
    count_B = masked_BHW.sum((1, 2))
    error = 4 * std * np.sqrt(2 / 2000)
    assert abs(count_B.mean() - mean) <= error and abs(count_B.std() - std) <= 0.1 * std
    assert count_B.max() <= target
    fraction_HW = masked_BHW.mean(0)
    at_edge = np.ones(grid, bool)
    at_edge[1:-1, 1:-1] = False
    middle = tuple(slice(side // 2 - 1, side // 2 + 1) for side in grid)
    assert abs(fraction_HW[at_edge].mean() - edge) < 0.006
    assert abs(fraction_HW[middle].mean() - center) < 0.03
    beside = (masked_BHW[:, 1:] & masked_BHW[:, :-1]).sum()
    beside += (masked_BHW[:, :, 1:] & masked_BHW[:, :, :-1]).sum()
    assert abs(beside / count_B.sum() - pairs) < 0.012
    assert abs(np.mean([label(image)[1] for image in masked_BHW[:1000]]) - components) < 0.15


@pytest.mark.parametrize("grid, smallest, context, target, union", MULTI)
def test_multiple_blocks_are_those_of_the_authors(grid, smallest, context, target, union):
    found = {"context": [], "target": [], "union": []}
    seen_N = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    for step in range(150):
        context_BC, target_TBK = MultiBlock(smallest=smallest).draw(images(16, step), grid)
        found["context"].append(context_BC.shape[1])
        found["target"].append(target_TBK.shape[2])
        inside_BN = torch.zeros(16, len(seen_N), dtype=torch.bool)
        inside_BN.scatter_(1, target_TBK.permute(1, 0, 2).flatten(1), True)
        found["union"].append(inside_BN.sum(1).double().mean())
        if smallest == 10:
            assert not inside_BN.gather(1, context_BC).any()
        seen_N |= inside_BN.any(0)
        seen_N[context_BC] = True
    for name, expected in (("context", context), ("target", target), ("union", union)):
        assert abs(np.mean(found[name]) - expected) < 0.05 * expected, name
    # The authors never draw the last row and column.
    assert not seen_N.view(grid)[-1].any() and not seen_N.view(grid)[:, -1].any()
    assert seen_N.view(grid)[:-1, :-1].all()


def test_blocks_may_be_allowed_at_all_edges():
    blocks, grid = MultiBlock(edges=True), (14, 14)
    draws = [blocks.draw(images(16, step), grid)[1].flatten() for step in range(40)]
    assert len(torch.cat(draws).unique()) == 14 * 14


@pytest.mark.parametrize("grid, words", [((1, 9), "several rows"), ((3, 3), "smallest=10")])
def test_grids_without_blocks_are_refused(grid, words):
    with pytest.raises(UserError, match=words):
        MultiBlock().check(grid)
    if 1 in grid:
        with pytest.raises(UserError, match="several rows"):
            block_masks(images(2), 0, torch.ones(2), grid)


def test_fractions_are_one_in_each_interval_of_half_of_the_views():
    fraction_BV = mask_fractions(images(16), 2, 0.5, (0.1, 0.5))
    given = fraction_BV[fraction_BV > 0].sort().values
    bounds = torch.linspace(0.1, 0.5, 17, dtype=torch.float64)
    assert len(given) == 16
    assert ((given >= bounds[:-1]) & (given < bounds[1:])).all()
    exact = mask_fractions(images(16), 2, 0.5, (0.1, 0.5), exact=True)
    assert torch.allclose(exact[exact > 0].sort().values, bounds[1:])
    assert not mask_fractions(images(16), 2, 0.0, (0.1, 0.5)).any()


def test_random_masks_have_their_number_and_every_view_its_own():
    count_B = torch.tensor([0, 3, 16, 16])
    masks = [random_masks(images(4), view, count_B, 32) for view in (0, 1)]
    for mask_BN in masks:
        assert mask_BN.sum(1).tolist() == count_B.tolist()
    assert not torch.equal(*masks)


DRAWS = {
    "block": lambda batch: block_masks(batch, 1, batch.index_B % 20 + 4.0, (8, 8)),
    "completed": lambda batch: block_masks(
        batch, 1, batch.index_B % 20 + 4.0, (8, 8), complete=True
    ),
    "random": lambda batch: random_masks(batch, 1, batch.index_B % 20, 64),
    "fractions": lambda batch: mask_fractions(batch, 2, 0.5, (0.1, 0.5)),
    "context": lambda batch: MultiBlock(smallest=4).draw(batch, (8, 8))[0],
    "targets": lambda batch: MultiBlock(smallest=4).draw(batch, (8, 8))[1].transpose(0, 1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_parts_of_a_batch_draw_what_the_whole_does_and_steps_differ(name):
    draw, whole = DRAWS[name], images(24, 3)
    assert torch.equal(torch.cat([draw(part) for part in parts(whole, (7, 1, 16))]), draw(whole))
    assert torch.equal(draw(whole), draw(images(24, 3)))
    other = draw(images(24, 4))
    assert other.shape != draw(whole).shape or not torch.equal(other, draw(whole))
