"""Compression limited by agreement with the original, without labels."""

from pathlib import Path

import pytest
import torch

from ssdistill.compress import Context
from ssdistill.compress.bisection import bisect_to_cka
from ssdistill.compress.comparing import cka_with
from ssdistill.compress.lowbit import LowBit, put_on_grid
from ssdistill.compress.prune import Prune
from ssdistill.errors import UserError
from ssdistill.measure.before_after import agreed_on
from ssdistill.measure.parameters import count_parameters

INPUTS = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def context():
    return Context(images=lambda n, seed: INPUTS[:n], folder=Path())


def cka(before, after):
    return agreed_on(before, after, INPUTS)["agree/cka"]


def test_likeness_is_the_debiased_cka_of_embeddings(make_encoder):
    one, other = make_encoder(0), make_encoder(1)
    assert cka_with(one, INPUTS)(other) == pytest.approx(cka(one, other), rel=1e-9)


@pytest.mark.parametrize(("threshold", "floor"), [(0.3, 0.7), (0.999, 0.001), (0.0, 0.9999)])
def test_the_largest_ratio_is_found_by_bisection(context, threshold, floor):
    ratios = []
    ratio, value = bisect_to_cka(floor, lambda r: ratios.append(r) or r, lambda r: 1 - r, context)
    assert ratio == pytest.approx(1 - floor, abs=1 / 256)
    assert value == 1 - ratio >= floor and len(ratios) == 9


def test_what_is_no_number_is_never_enough(context):
    assert bisect_to_cka(0.5, lambda r: r, lambda r: float("nan") if r else 1.0, context) == (0, 1)


def test_pruning_stops_where_agreement_would(make_encoder, context):
    encoder = make_encoder().eval()
    # Fresh residual blocks add nothing, and nothing would be lost with them.
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    sizes = []
    for floor in (0.9, 0.5):
        context.record.clear()
        pruned = Prune(cka=floor, round_to=1).apply(encoder, context)
        assert floor <= context.record["cka"] == pytest.approx(cka(encoder, pruned), rel=1e-6)
        sizes.append(count_parameters(pruned))
        beyond = Prune(ratio=context.record["ratio"] + 1 / 256, round_to=1)
        assert cka(encoder, beyond.apply(encoder, context)) < floor
    assert count_parameters(encoder) > sizes[0] > sizes[1]


def test_bits_are_as_few_as_agreement_allows(make_encoder, context):
    encoder = make_encoder().eval()
    grid = {"clip": "mse", "per_channel": True, "symmetric": False}
    keys = list(LowBit(bits=2)._bits_by_key(encoder, 2))
    by_bits = {b: cka(encoder, put_on_grid(encoder, dict.fromkeys(keys, b), **grid))
               for b in range(2, 9)}  # fmt: skip
    floor = (by_bits[4] + by_bits[3]) / 2
    fewest = next(b for b in by_bits if by_bits[b] >= floor)
    assert fewest > 2
    LowBit(bits=2, cka=floor, bias_correction=False).apply(encoder, context)
    assert context.record["mean_bits"] == fewest
    assert context.record["cka"] == pytest.approx(by_bits[fewest], rel=1e-6)


def test_a_floor_out_of_reach_is_named(make_encoder, context):
    with pytest.raises(UserError, match=r"lowbit\.cka=0\.9999999: out of reach, even 8 bits"):
        LowBit(cka=0.9999999).apply(make_encoder().eval(), context)
    with pytest.raises(UserError, match="give bits as one number, not by layer"):
        LowBit(bits={"*": 4}, cka=0.9)
