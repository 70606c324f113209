"""Properties of VID and the variance that it learns."""

import pytest
import torch
from intermediate_inputs import batch, build, make_inputs, maps
from torch import nn

from ssdistill.errors import UserError
from ssdistill.losses.vid import gaussian_surprise


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_vids_best_variance_is_the_mean_squared_error(factor):
    s, t = maps(0), maps(1)
    error_C = (s - t).square().mean((0, 2, 3))
    log_scale_C = (factor * error_C - 1e-5).expm1().log().requires_grad_()
    gaussian_surprise(s, t, log_scale_C).backward()
    slope = torch.sign(log_scale_C.grad) * (log_scale_C.grad.abs() > 1e-6)
    assert (slope == (factor > 1) - (factor < 1)).all()


def test_vid_starts_at_its_variance_and_learns_it():
    loss_of = build("vid", initial_variance=3.0)
    student, teacher = make_inputs(loss_of)
    guess = loss_of.guesses[0]
    start_C = nn.functional.softplus(guess.log_scale) + 1e-5
    assert torch.allclose(start_C, torch.full_like(start_C, 3.0))
    optimizer = torch.optim.SGD(loss_of.parameters(), lr=10.0)
    before = guess.log_scale.detach().clone()
    loss_of(student, teacher, batch()).backward()
    optimizer.step()
    assert (guess.log_scale != before).all()


def test_a_variance_below_the_least_is_refused():
    with pytest.raises(UserError, match=r"^vid: initial_variance=1e-06 must be above 1e-05"):
        build("vid", initial_variance=1e-6)
