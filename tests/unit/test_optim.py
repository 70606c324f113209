import math

import pytest
import torch
from lightly.utils.lars import LARS
from pydantic import ValidationError
from torch import nn

from ssdistill.train.optim import (
    OptimSettings,
    build_optimizer,
    learning_rate,
    parameter_groups,
)


def small_net():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[3].bias.requires_grad_(False)
    return net


def test_vectors_are_not_decayed_and_frozen_parameters_are_left_out():
    net = small_net()
    decayed, free = parameter_groups(net, 0.3)
    assert [id(p) for p in decayed["params"]] == [id(net[0].weight), id(net[3].weight)]
    assert [id(p) for p in free["params"]] == [id(net[0].bias), *map(id, net[1].parameters())]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


def test_a_group_without_parameters_is_left_out():
    (only,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert only["weight_decay"] == 0.1


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_decay_alone_shrinks_weights_and_leaves_biases(kind):
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = build_optimizer(layer, OptimSettings(kind=kind, lr=0.1, weight_decay=0.5))
    for parameter in layer.parameters():
        # Without any gradient, LARS leaves a parameter alone.
        parameter.grad = torch.full_like(parameter, 1e-12 if kind == "lars" else 0.0)
    optimizer.step()
    assert torch.allclose(layer.bias, before["bias"], atol=1e-6)
    assert layer.weight.norm() < before["weight"].norm()


@pytest.mark.parametrize(
    "settings, cls, values",
    [
        ({"kind": "sgd", "momentum": 0.7}, torch.optim.SGD, {"momentum": 0.7}),
        ({"kind": "adamw", "betas": (0.8, 0.9)}, torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        (
            {"kind": "lars", "momentum": 0.7, "trust_coefficient": 0.02},
            LARS,
            {"momentum": 0.7, "trust_coefficient": 0.02},
        ),
    ],
    ids=["sgd", "adamw", "lars"],
)
def test_the_optimizer_gets_its_settings(settings, cls, values):
    optimizer = build_optimizer(small_net(), OptimSettings(lr=0.25, **settings))
    assert type(optimizer) is cls
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25
        assert {key: group[key] for key in values} == values


def test_lars_scales_a_step_by_the_norm_of_the_weights():
    layer = nn.Linear(4, 4, bias=False)
    moved = []
    for scale in (1.0, 10.0):
        nn.init.constant_(layer.weight, scale)
        optimizer = build_optimizer(
            layer, OptimSettings(kind="lars", lr=1.0, weight_decay=1e-9, momentum=0.0)
        )
        layer.weight.grad = torch.ones(4, 4)
        optimizer.step()
        moved.append((layer.weight - scale).norm().item())
    assert moved[1] == pytest.approx(10 * moved[0], rel=1e-3)
    assert moved[0] == pytest.approx(1e-3 * 4.0, rel=1e-3)


def test_lars_without_weight_decay_is_refused():
    with pytest.raises(ValidationError, match="lars needs weight_decay above 0"):
        OptimSettings(kind="lars", weight_decay=0)
    OptimSettings(kind="sgd", weight_decay=0)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "inverse_time"])
def test_the_rate_rises_linearly_to_its_peak(schedule):
    settings = OptimSettings(lr=0.8, warmup=0.4, schedule=schedule, milestones=(0.9,))
    rates = [learning_rate(settings, step, 10) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_cosine_falls_from_the_peak_by_way_of_the_middle_to_its_end():
    settings = OptimSettings(lr=2.0, warmup=0.2, lr_end=0.1)
    rates = [learning_rate(settings, step, 100) for step in (20, 60, 100)]
    assert rates == pytest.approx([2.0, 1.1, 0.2])
    last = 0.2 + 0.9 * (1 + math.cos(math.pi * 79 / 80))
    assert learning_rate(settings, 99, 100) == pytest.approx(last)


def test_step_multiplies_at_each_milestone_of_the_whole_training():
    settings = OptimSettings(lr=1.0, warmup=0, schedule="step", milestones=(0.5, 0.8), gamma=0.2)
    rates = [learning_rate(settings, step, 10) for step in (0, 4, 5, 7, 8, 9)]
    assert rates == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_inverse_time_follows_its_formula_after_the_warm_up():
    settings = OptimSettings(lr=1.0, warmup=0.2, schedule="inverse_time", decay=4.0)
    rates = [learning_rate(settings, step, 10) for step in (2, 6, 10)]
    assert rates == pytest.approx([1.0, 1 / 3, 1 / 5])


def test_constant_stays():
    settings = OptimSettings(lr=0.3, warmup=0, schedule="constant")
    assert [learning_rate(settings, step, 7) for step in range(7)] == [0.3] * 7


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_training_of_one_step_has_a_rate(warmup):
    assert learning_rate(OptimSettings(lr=0.3, warmup=warmup), 0, 1) == pytest.approx(0.3)
