"""How AT, NST and FSP summarize maps: attention, selectivity, flow."""

import pytest
import torch
from intermediate_inputs import COUNT, build, maps, near
from torch import nn

from ssdistill.errors import UserError
from ssdistill.losses.at import attention_difference
from ssdistill.losses.fsp import flow_difference
from ssdistill.losses.nst import selectivity_discrepancy
from ssdistill.testing.synthetic import make_shapes


@pytest.mark.parametrize("power", [1, 2, 3])
def test_attention_is_the_mean_power_of_the_channels(power):
    s, t = maps(0, channels=2), maps(1, channels=3)
    ours, theirs = (sum(c.abs() ** power for c in x.unbind(1)).flatten(1) for x in (s, t))
    ours, theirs = (x / x.norm(dim=1, keepdim=True) for x in (ours, theirs))
    assert near(attention_difference(s, t, power), (ours - theirs).square().mean())


def test_nst_is_the_discrepancy_of_the_channels():
    s, t = maps(0, channels=3), maps(1, channels=5)
    expected = []
    for x, y in zip(s.flatten(2), t.flatten(2), strict=True):
        x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))

        def kernel(a, b):
            return torch.stack([(p @ q) ** 2 for p in a for q in b]).mean()

        expected.append(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert near(selectivity_discrepancy(s, t), torch.stack(expected).mean())


def test_nst_does_not_count_channels():
    t = maps(1)
    assert float(selectivity_discrepancy(torch.cat([t, 3 * t], 1), t)) == pytest.approx(0, abs=1e-6)
    assert float(selectivity_discrepancy(t[:, :2], t)) > 0.01


def test_fsp_compares_what_channels_do_together():
    (s, u), (t, v) = ([maps(seed, channels=c) for c in (2, 3)] for seed in (0, 1))
    expected = []
    for b in range(COUNT):
        for c in range(2):
            for d in range(3):
                ours, theirs = (s[b, c] * u[b, d]).mean(), (t[b, c] * v[b, d]).mean()
                expected.append((ours - theirs) ** 2)
    assert near(flow_difference([s, u], [t, v])[0], torch.stack(expected).mean())


def test_fsp_asks_for_no_common_grid():
    s, t = [maps(0), maps(1, side=2)], [maps(2, side=8), maps(3, side=4)]
    assert torch.isfinite(flow_difference(s, t)[0])


def test_fsp_needs_two_maps_and_a_head_only_between_unlike_widths():
    with pytest.raises(UserError, match=r"^fsp: maps names one map; set maps=stages"):
        build("fsp", maps="last")
    assert [type(head) for head in build("fsp").heads] == [nn.Conv2d] * 4
    assert [type(head) for head in build("fsp", make_shapes(16, 16)).heads] == [nn.Identity] * 4
