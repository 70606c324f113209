"""LeJEPA: what the statistic measures, and what the forms share."""

import pytest
import torch

from ssdistill.losses.base.sigreg import directions, epps_pulley, expected_statistic, sigreg
from ssdistill.pretrain.lejepa import DEFAULTS, LeJEPA


def test_the_statistic_of_normal_samples_is_small_whatever_their_number():
    torch.manual_seed(0)
    for count in (50, 800):
        mean = epps_pulley(torch.randn(count, 4000)).mean().item()
        assert mean == pytest.approx(expected_statistic(), rel=0.06)
    narrow, shifted = epps_pulley(0.3 * torch.randn(800, 50)), epps_pulley(1 + torch.randn(800, 50))
    assert min(narrow.min().item(), shifted.min().item()) > 20 * expected_statistic()


def test_directions_are_of_length_1_and_new_in_every_step():
    device = torch.device("cpu")
    first, again, next_ = (directions(8, 5, step, device) for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, next_)
    assert torch.allclose(first.norm(dim=0), torch.ones(5))


def test_it_spreads_collapsed_vectors():
    torch.manual_seed(0)
    z_ND = (0.01 * torch.randn(64, 8)).requires_grad_()
    optimizer = torch.optim.Adam([z_ND], lr=0.05)
    before = sigreg(z_ND, directions(8, 64, 0, z_ND.device)).item()
    for step in range(150):
        optimizer.zero_grad()
        sigreg(z_ND, directions(8, 64, step, z_ND.device)).backward()
        optimizer.step()
    assert sigreg(z_ND, directions(8, 64, 0, z_ND.device)).item() < before / 20
    assert z_ND.std(0).mean().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("form", DEFAULTS)
def test_views_that_agree_have_no_invariance_loss(make_encoder, form):
    method = LeJEPA(make_encoder(), form=form)
    z_VBP = torch.randn(1, 12, 16).repeat(4, 1, 1)
    terms = method.terms(z_VBP, directions(16, 8, 0, z_VBP.device))
    assert terms["invariance"].item() == pytest.approx(0, abs=1e-12)
    assert terms["sigreg"].item() > 0
    weights = method.weights_at(0, 1)
    assert weights["sigreg"] == DEFAULTS[form][0]
    assert weights["invariance"] == (1 if form == "stable_pretraining" else 1 - DEFAULTS[form][0])
