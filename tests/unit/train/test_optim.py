import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ssdistill.errors import UserError
from ssdistill.train.lars import LARS
from ssdistill.train.optim import (
    OptimSettings,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_rates,
    weight_decay,
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
            {"kind": "lars", "momentum": 0.7, "trust_coefficient": 0.02, "clip_lr": True},
            LARS,
            {"momentum": 0.7, "trust_coefficient": 0.02, "clip_lr": True},
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


@pytest.mark.parametrize("kind, setting", [("lars", "decay_all"), ("sgd", "clip_lr")])
def test_settings_that_a_kind_does_not_have_are_refused(kind, setting):
    with pytest.raises(ValidationError, match=f"{setting} requires"):
        OptimSettings(kind=kind, **{setting: True})


def test_settings_that_came_later_are_written_down_only_where_used():
    plain = OptimSettings().model_dump(mode="json")
    assert not {"weight_decay_end", "decay_all", "clip_lr", "lr_start", "constant"} & set(plain)
    used = OptimSettings(lr_start=0.0, decay_all=True, constant=("a",), weight_decay_end=0.0)
    assert set(used.model_dump()) - set(plain) == {
        "lr_start",
        "decay_all",
        "constant",
        "weight_decay_end",
    }
    assert OptimSettings(**used.model_dump(mode="json")) == used


def test_everything_is_decayed_on_request():
    net = small_net()
    (only,) = parameter_groups(net, 0.3, decay_all=True)
    assert len(only["params"]) == 5 and only["weight_decay"] == 0.3


def test_a_constant_module_has_groups_of_its_own():
    net = nn.ModuleDict({"encoder": nn.Linear(2, 2), "encoder_too": nn.Linear(2, 2)})
    groups = parameter_groups(net, 0.1, constant=("encoder",))
    assert [group["constant"] for group in groups] == [False, False, True, True]
    assert [id(p) for group in groups[2:] for p in group["params"]] == [
        id(net["encoder"].weight),
        id(net["encoder"].bias),
    ]
    with pytest.raises(UserError, match=r"no trainable module 'encodr' \(did you mean 'encoder'"):
        parameter_groups(net, 0.1, constant=("encodr",))


def test_rates_are_set_group_by_group():
    net = nn.ModuleDict({"body": nn.Linear(2, 2), "predictor": nn.Linear(2, 2)})
    settings = OptimSettings(
        kind="sgd",
        lr=0.8,
        warmup=0,
        weight_decay=0.04,
        weight_decay_end=0.4,
        constant=("predictor",),
    )
    optimizer = build_optimizer(net, settings)
    assert set_rates(optimizer, settings, 5, 10) == pytest.approx(0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.4, 0.8, 0.8])
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == pytest.approx([0.22, 0, 0.22, 0])


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_set_rates_by_default_changes_the_learning_rate_only(kind):
    settings = OptimSettings(kind=kind, lr=0.5, weight_decay=0.3, warmup=0.2)
    optimizer = build_optimizer(small_net(), settings)
    lr = set_rates(optimizer, settings, 4, 10)
    assert lr == learning_rate(settings, 4, 10)
    for group, decay in zip(optimizer.param_groups, (0.3, 0.0), strict=True):
        assert (group["lr"], group["weight_decay"]) == (lr, decay)


def test_weight_decay_goes_to_its_end_by_a_cosine():
    settings = OptimSettings(weight_decay=0.04, weight_decay_end=0.4)
    decays = [weight_decay(settings, step, 100) for step in (0, 50, 100)]
    assert decays == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay(settings, 25, 100) < 0.13
    assert weight_decay(OptimSettings(weight_decay=0.3), 7, 9) == 0.3


def test_a_warm_up_starts_where_it_is_told_and_reaches_the_peak_at_its_last_step():
    settings = OptimSettings(lr=2.0, warmup=0.5, lr_start=0.1, schedule="constant")
    rates = [learning_rate(settings, step, 10) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.65, 1.1, 1.55, 2.0, 2.0])
    assert learning_rate(settings, 0, 2) == 2.0


def test_the_default_warm_up_is_one_that_starts_a_step_above_zero():
    by_default = OptimSettings(lr=0.7, warmup=0.5)
    told = OptimSettings(lr=0.7, warmup=0.5, lr_start=1 / 8)
    for step in range(8):
        assert learning_rate(told, step, 16) == pytest.approx(learning_rate(by_default, step, 16))


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


def test_rates_multiply_the_learning_rate_of_their_parameters():
    net = small_net()
    settings = OptimSettings(lr=0.4, schedule="constant", warmup=0.0, constant=("3",))
    net.rates = {"0.weight": 0.5, "0.bias": 0.5, "3.weight": 0.25}
    optimizer = build_optimizer(net, settings)
    assert set_rates(optimizer, settings, 3, 10) == 0.4
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert (lr[id(net[0].weight)], lr[id(net[0].bias)]) == (0.2, 0.2)
    assert (lr[id(net[1].weight)], lr[id(net[3].weight)]) == (0.4, 0.1)


def test_without_rates_there_are_the_groups_there_have_always_been():
    assert len(parameter_groups(small_net(), 0.1)) == 2
    optimizer = build_optimizer(small_net(), OptimSettings(lr=0.4))
    for group in optimizer.param_groups:
        # As in a checkpoint of an earlier version.
        del group["rate"]
    assert set_rates(optimizer, OptimSettings(lr=0.4), 5, 10) == optimizer.param_groups[0]["lr"]


def test_a_rate_of_no_parameter_is_refused():
    with pytest.raises(ValueError, match=r"unknown parameter '4\.weight'"):
        parameter_groups(small_net(), 0.1, rates={"4.weight": 0.5})


@pytest.mark.parametrize("setting", ["lr", "weight_decay", "weight_decay_end", "gamma"])
def test_rates_on_which_an_optimizer_overflows_are_refused(setting):
    with pytest.raises(ValidationError, match=f"{setting}\n.*less than or equal to 1000000"):
        OptimSettings(**{setting: 1e38})
