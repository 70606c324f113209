import pytest
import torch
from torch import nn

from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum


def filled(value, count):
    norm = nn.BatchNorm1d(3)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.constant_(tensor, value)
    norm.num_batches_tracked.fill_(count)
    return norm


def test_a_copy_starts_equal_shares_nothing_and_takes_no_gradient():
    online = filled(1.0, 3)
    target = momentum_copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
    nn.init.constant_(online.weight, 5.0)
    assert torch.equal(target.weight, torch.ones(3))


def test_parameters_and_running_statistics_move_and_counters_are_copied():
    online, target = filled(2.0, 7), filled(1.0, 3)
    update_momentum(online, target, 0.75)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.allclose(getattr(target, name), torch.full((3,), 1.25)), name
        assert torch.equal(getattr(online, name), torch.full((3,), 2.0)), name
    assert target.num_batches_tracked == 7


@pytest.mark.parametrize("momentum, result", [(1.0, 1.0), (0.0, 2.0)])
def test_momentum_one_keeps_the_target_and_zero_replaces_it(momentum, result):
    online, target = filled(2.0, 1), filled(1.0, 0)
    update_momentum(online, target, momentum)
    assert torch.allclose(target.running_var, torch.full((3,), result))
    assert torch.allclose(target.weight, torch.full((3,), result))


def test_momentum_rises_by_a_cosine_from_its_base_to_one():
    values = [cosine_momentum(0.9, step, 100) for step in range(101)]
    assert values[0] == pytest.approx(0.9)
    assert values[50] == pytest.approx(0.95)
    assert values[100] == pytest.approx(1.0)
    assert values == sorted(values)
