"""Properties of both forms of CaSSLe."""

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import COUNT, KNOWN, WIDTH, headless, outputs, rows, value

from ssdistill.losses.cassle import CaSSLe, contrastive, decorrelative
from ssdistill.models.representation import Outputs, Representation


def test_cassle_is_at_its_best_where_each_finds_its_own():
    p, z = rows("p0", "p1"), rows("z0", "z1")
    pairs = [(0, 0), (1, 1)]
    matched = contrastive(z, z, pairs, 0.05)
    assert matched < 0.5 < contrastive(z, z[::-1], pairs, 0.05)
    forth, back = (float(contrastive(*sides, pairs, 0.2)) for sides in ((p, z), (z, p)))
    assert forth == pytest.approx(back, rel=1e-6)


def test_cassle_does_not_count_a_view_that_is_paired_twice_among_its_own_negatives():
    """As for the small crops of multi-crop training, which share the large one's vector."""
    s, t = (Representation(x) for x in rows("s", "t"))
    loss_of = headless(CaSSLe(KNOWN))
    expected = value(loss_of, Outputs([s]), Outputs([t]))
    assert value(loss_of, Outputs([s, s]), Outputs([t, t])) == pytest.approx(expected, rel=1e-6)
    p, q, z = rows("p", "q", "z")
    logits = F.normalize(torch.cat([p, q]), dim=1) @ F.normalize(z, dim=1).T / 0.2
    own = torch.arange(COUNT)
    forth = F.cross_entropy(logits, own.repeat(2))
    back = (F.cross_entropy(logits.T, own) + F.cross_entropy(logits.T, own + COUNT)) / 2
    shared = Representation(z)
    found = value(loss_of, outputs(p, q), Outputs([shared, shared]))
    assert found == pytest.approx(float(forth + back) / 2, rel=1e-6)


def test_cassle_s_barlow_form_wants_each_dimension_correlated_with_its_own_only():
    white = torch.linalg.qr(rows("w", count=64)[0] - rows("w", count=64)[0].mean(0))[0]
    white = white - white.mean(0)
    assert decorrelative([3 * white + 1], [white], [(0, 0)], 1.0) < 1e-3
    assert decorrelative([-white], [white], [(0, 0)], 0.0) == pytest.approx(4 * WIDTH, rel=1e-2)
    assert decorrelative([white], [white.flip(0), white], [(0, 1)], 1.0) < 1e-3
    mixed = white.roll(1, 1)
    assert decorrelative([mixed], [white], [(0, 0)], 0.5) == pytest.approx(1.5 * WIDTH, rel=1e-2)


def test_cassle_s_predictor_sees_one_view_at_a_time():
    loss_of = CaSSLe(KNOWN, hidden_dim=8)
    s, t = rows("s0", "s1"), rows("t0", "t1")
    p = [loss_of.head(x_BD) for x_BD in s]
    expected = float(contrastive(p, t, [(0, 0), (1, 1)], 0.2).detach())
    assert value(loss_of, outputs(*s), outputs(*t)) == pytest.approx(expected, rel=1e-6)
