"""Images drawn by weight: how often, and the same whatever the ranks and the start."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdistill.data.loader import Loader
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.undecoded import known_stores
from ssdistill.data.view_plan import ViewPlan
from ssdistill.data.weighting import WeightedOrder
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

WEIGHTS = (0, 1, 1, 2, 4, 8, 0, 0.5)
PLAN = ViewPlan((ViewRecipe(scale=(0.2, 1.0)),), 3, 8)


@pytest.fixture(params=["stored", "original"])
def opened(request, tmp_path):
    (tmp_path / "i").mkdir()
    for i in range(len(WEIGHTS)):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "i" / f"{i}.png")

    def open_it(weights=WEIGHTS, opener=open_stores, bad=()):
        rows = "".join(f"i/{i}.png,{weight}\n" for i, weight in enumerate(weights))
        (tmp_path / "list.csv").write_text(f"path,weight\n{rows}")
        for i in bad:
            (tmp_path / "i" / f"{i}.png").write_bytes(b"x")
        config = {"kind": "list", "path": str(tmp_path / "list.csv"), "test_fraction": 0}
        config |= {"pixels": request.param, "max_bad": 0.5}
        settings = SOURCES.schema("list").model_validate(config)
        return opener(open_source(settings), settings, 8, tmp_path / "data")["train"]

    return open_it


def test_images_are_drawn_as_often_as_they_weigh():
    weight_N = np.array(WEIGHTS)
    order = WeightedOrder(weight_N)
    row_B = np.concatenate([order.rows(np.arange(4000), 5, epoch) for epoch in range(5)])
    share_N = np.bincount(row_B, minlength=len(WEIGHTS)) / len(row_B)
    expected_N = weight_N / weight_N.sum()
    assert (share_N[weight_N == 0] == 0).all()
    assert (np.abs(share_N - expected_N) < 4 * np.sqrt(expected_N / len(row_B)) + 1e-12).all()
    one = [order.rows(np.array([position]), 5, 3)[0] for position in range(50)]
    np.testing.assert_array_equal(one, order.rows(np.arange(50), 5, 3))
    assert (order.rows(np.arange(50), 6, 3) != one).any()


def batches(images, **more):
    loader = Loader(images, 4, 7, 6, weights=images.weights, **more)
    return [loader.batch(step, PLAN) for step in range(6)]


def test_ranks_have_slices_and_resumption_is_exact(opened):
    images = opened()
    whole = batches(images)
    assert {int(i) for b in whole for i in b.index_B} <= {1, 2, 3, 4, 5, 7}
    parts = [batches(images, world_size=2, rank=rank) for rank in range(2)]
    for step, batch in enumerate(whole):
        joined = torch.cat([part[step].index_B for part in parts])
        assert torch.equal(joined, batch.index_B)
        views = torch.cat([PLAN.views(part[step])[0] for part in parts])
        torch.testing.assert_close(views, PLAN.views(batch)[0])
    again = list(Loader(images, 4, 7, 6, weights=images.weights).iterate(4, PLAN))
    for before, after in zip(whole[4:], again, strict=True):
        assert torch.equal(before.index_B, after.index_B)
        assert torch.equal(PLAN.views(before)[0], PLAN.views(after)[0])


def test_an_image_that_is_drawn_twice_has_two_views(opened):
    images = opened((0, 0, 0, 0, 0, 1, 0, 0))
    batch = batches(images)[0]
    assert batch.index_B.tolist() == [5, 5, 5, 5]
    views = PLAN.views(batch)[0]
    assert all(not torch.equal(views[0], view) for view in views[1:])


def test_weights_that_differ_enter_the_fingerprint(opened):
    plain = opened((1,) * 8)
    assert plain.weights is None
    weighted = opened()
    assert weighted.fingerprint != plain.fingerprint
    assert opened(opener=known_stores).fingerprint == weighted.fingerprint
    doubled = opened([2 * weight for weight in WEIGHTS])
    assert doubled.fingerprint == weighted.fingerprint
    assert opened([1, *WEIGHTS[1:]]).fingerprint != weighted.fingerprint
    torch.testing.assert_close(batches(plain)[0].draw_B, None)


def test_bad_images_take_their_weights_along(opened):
    images = opened(bad=(2,))
    assert images.weights.tolist() == [0, 1, 2, 4, 8, 0, 0.5]
    with pytest.raises(UserError, match=r"all weights are 0.*data.weight_column=none"):
        opened((0,) * 8)


def test_weights_whose_sum_is_infinite_are_refused(opened):
    with pytest.raises(UserError, match=r"too large to be added, up to 1e\+308; divide all"):
        opened([1e308] * 7 + [1])


def test_digits_with_underscores_are_no_weight(opened):
    with pytest.raises(UserError, match="the weight '1_0' in row 8 must be a non-negative number"):
        opened([1] * 7 + ["1_0"])
