import copy

import pytest
import torch
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.searching.actions import Actions, Site, embed
from ssdistill.compress.searching.allocate import (
    allocate,
    best_uniform_within,
    predict_damage,
    uniform_allocations,
)
from ssdistill.compress.searching.allocation_costs import AllocationCosts
from ssdistill.compress.searching.damages import damage
from ssdistill.compress.searching.measured_budget import file_size
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.wrapped import Wrapped


def images(n, seed=0):
    """Smooth random images: coarse noise, enlarged."""
    coarse_BCHW = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse_BCHW, 16, mode="bilinear")


@pytest.fixture
def make_actions(make_encoder, tmp_path):
    def make(*kinds, **options):
        options = {"round_to": 2} | options
        context = Context(images, tmp_path)
        encoder = make_encoder().eval()
        for norm in encoder.net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)  # branches begin at zero otherwise
        return Actions(encoder, context, images(48), kinds, **options)

    return make


CONV = "layer1.0.conv1"


def test_every_kind_lists_its_places_from_mild_to_severe(make_actions):
    actions = make_actions("bits", "width", "rank")
    assert {site.kind for site in actions.levels} == {"bits", "width", "rank"}
    assert all(list(v) == sorted(v, reverse=True) for v in actions.levels.values())
    assert actions.levels[Site("bits", f"{CONV}.weight")] == (8, 7, 6, 5, 4, 3, 2)
    widths = [
        actions.kept_fraction(Site("width", CONV), v) for v in actions.levels[Site("width", CONV)]
    ]
    assert len(set(widths)) == len(widths) and max(widths) < 1


def test_an_empty_plan_is_the_model_and_no_plan_changes_it(make_actions):
    actions = make_actions("bits", "width", "rank")
    state = copy.deepcopy(actions.model.state_dict())
    x_BCHW = images(4)
    assert torch.equal(embed(actions.build({}), x_BCHW), embed(actions.model, x_BCHW))
    for site in actions.levels:
        compressed, _ = actions.alone(site, actions.levels[site][-1])
        assert not torch.equal(embed(compressed, x_BCHW), embed(actions.model, x_BCHW)), site
    assert all(torch.equal(t, state[key]) for key, t in actions.model.state_dict().items())


def test_an_action_changes_its_own_layer_alone(make_actions):
    actions = make_actions("bits")
    compressed, _ = actions.alone(Site("bits", f"{CONV}.weight"), 3)
    changed = [
        k
        for k, t in compressed.net.state_dict().items()
        if not torch.equal(t, actions.model.net.state_dict()[k])
    ]
    assert changed == [f"{CONV}.weight"] == list(compressed.coded)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_estimated_costs_of_widths_and_ranks_are_those_of_the_built_model(make_actions, unit):
    actions = make_actions("width", "rank", with_refit=False)
    count = count_macs if unit == "macs" else count_parameters
    costs = AllocationCosts(actions, unit, count(actions.model))
    assert costs.total({}) == pytest.approx(count(actions.model))
    for site, levels in actions.levels.items():
        allocation = {site: levels[-1]}
        biases = 0.02 if site.kind == "rank" and unit == "parameters" else 1e-9
        assert costs.total(allocation) == pytest.approx(
            count(actions.build(allocation)), rel=biases
        )
        saving = costs.saving({}, site, levels[-1])
        assert saving == pytest.approx(costs.total({}) - costs.total(allocation))
    widths = {site: v[-1] for site, v in actions.levels.items() if site.kind == "width"}
    assert costs.total(widths) == pytest.approx(count(actions.build(widths)))


def test_estimated_bytes_are_close_to_those_of_the_file(make_actions):
    actions = make_actions("bits", "width", with_refit=False)
    for level in (3, 6):
        bits = {s: level for s in actions.levels if s.kind == "bits"}
        coded = {(site, level): actions.alone(site, level)[1] for site in bits}
        costs = AllocationCosts(actions, "bytes", file_size(actions.model), coded)
        narrow = {s: v[-1] for s, v in actions.levels.items() if s.kind == "width"}
        for allocation in (bits, bits | narrow):
            assert costs.total(allocation) == pytest.approx(
                file_size(actions.build(allocation)), rel=0.1
            )


def test_bits_of_a_layer_that_has_become_two_go_for_both(make_actions):
    actions = make_actions("bits", "rank")
    compressed = actions.build({Site("rank", CONV): 0.4, Site("bits", f"{CONV}.weight"): 4})
    assert {key: code.bits for key, code in compressed.coded.items()} == {
        f"{CONV}.reduce.weight": 4,
        f"{CONV}.expand.weight": 4,
    }


def test_no_layer_loses_channels_and_becomes_two(make_actions):
    actions = make_actions("width", "rank")
    assert actions.conflict(Site("width", CONV), Site("rank", "layer1.0.conv2"))
    assert not actions.conflict(Site("width", CONV), Site("rank", "layer2.0.conv2"))
    assert not actions.conflict(Site("width", CONV), Site("width", "layer2.0.conv1"))
    for allocation in uniform_allocations(actions):
        assert not any(actions.conflict(a, b) for a in allocation for b in allocation)


@pytest.fixture
def chain():
    """Linear layers whose damages are given, not measured."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    model = Wrapped(net, torch.randn(4, 64)).eval()
    actions = Actions(model, Context(None, None), torch.randn(8, 64), ("bits",))
    coded = {(s, v): int(64 * 64 * v / 8) for s, levels in actions.levels.items() for v in levels}
    sensitivity = {site: 10.0**-i for i, site in enumerate(actions.levels)}
    damage_by_action = {(s, v): sensitivity[s] * 4.0**-v for s, v in coded}
    return actions, damage_by_action, AllocationCosts(actions, "bytes", file_size(model), coded)


def test_the_sensitive_layer_keeps_its_bits_and_the_budget_is_met(chain):
    actions, damage_by_action, costs = chain
    (allocation,) = allocate(actions, damage_by_action, costs, [costs.whole * 0.14])
    bits = [allocation.get(site, 32) for site in actions.levels]
    assert bits == sorted(bits, reverse=True) and bits[0] > bits[-1]
    assert costs.total(allocation) <= costs.whole * 0.14


def test_greedy_steps_come_within_a_hair_of_the_best_of_compression_variants(chain):
    actions, damage_by_action, costs = chain
    sites = list(actions.levels)[:2]
    actions.levels = {site: actions.levels[site] for site in sites}
    allocations = [{sites[0]: a, sites[1]: b} for a in range(2, 9) for b in range(2, 9)]
    allocations += [{site: v} for site in sites for v in range(2, 9)]
    for share in (0.7, 0.62, 0.58):
        budget = costs.whole * share
        best = min(
            predict_damage(p, damage_by_action) for p in allocations if costs.total(p) <= budget
        )
        (allocation,) = allocate(actions, damage_by_action, costs, [budget])
        assert (
            costs.total(allocation) <= budget
            and predict_damage(allocation, damage_by_action) <= 1.3 * best
        )


def test_a_smaller_budget_never_damages_less_and_one_out_of_reach_has_no_plan(chain):
    actions, damage_by_action, costs = chain
    shares = (0.25, 0.2, 0.16, 0.12, 0.01)
    allocations = allocate(actions, damage_by_action, costs, [s * costs.whole for s in shares])
    assert allocations[-1] is None
    damages = [predict_damage(allocation, damage_by_action) for allocation in allocations[:-1]]
    assert damages == sorted(damages) and damages[0] < damages[-1]


def test_no_uniform_plan_of_the_same_cost_is_predicted_to_be_better(chain):
    actions, damage_by_action, costs = chain
    uniform = [(allocation, costs.total(allocation)) for allocation in uniform_allocations(actions)]
    assert len(uniform) == 7
    for allocation, cost in uniform:
        (searched,) = allocate(actions, damage_by_action, costs, [cost])
        assert predict_damage(searched, damage_by_action) <= predict_damage(
            allocation, damage_by_action
        ) * (1 + 1e-9)
        assert best_uniform_within(uniform, damage_by_action, cost) == allocation
    assert best_uniform_within(uniform, damage_by_action, 0) is None


@pytest.mark.parametrize("measure", ["cosine", "cka"])
def test_damage_is_zero_for_the_same_about_one_for_unrelated_and_worst_for_nan(measure):
    a_ND, b_ND = torch.randn(300, 8), torch.randn(300, 8)
    assert damage(a_ND, a_ND, measure) == pytest.approx(0, abs=1e-6)
    assert damage(a_ND, b_ND, measure) == pytest.approx(1, abs=0.15)
    assert damage(a_ND * float("nan"), b_ND, measure) == 2
