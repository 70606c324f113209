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
def actions(make_encoder, tmp_path):
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


def test_every_kind_lists_its_places_from_mild_to_severe(actions):
    found = actions("bits", "width", "rank")
    assert {site.kind for site in found.levels} == {"bits", "width", "rank"}
    assert all(list(v) == sorted(v, reverse=True) for v in found.levels.values())
    assert found.levels[Site("bits", f"{CONV}.weight")] == (8, 7, 6, 5, 4, 3, 2)
    widths = [
        found.kept_fraction(Site("width", CONV), v) for v in found.levels[Site("width", CONV)]
    ]
    assert len(set(widths)) == len(widths) and max(widths) < 1


def test_an_empty_plan_is_the_model_and_no_plan_changes_it(actions):
    found = actions("bits", "width", "rank")
    state = copy.deepcopy(found.model.state_dict())
    x_BCHW = images(4)
    assert torch.equal(embed(found.build({}), x_BCHW), embed(found.model, x_BCHW))
    for site in found.levels:
        made, _ = found.alone(site, found.levels[site][-1])
        assert not torch.equal(embed(made, x_BCHW), embed(found.model, x_BCHW)), site
    assert all(torch.equal(t, state[key]) for key, t in found.model.state_dict().items())


def test_an_action_changes_its_own_layer_alone(actions):
    found = actions("bits")
    made, _ = found.alone(Site("bits", f"{CONV}.weight"), 3)
    changed = [
        k
        for k, t in made.net.state_dict().items()
        if not torch.equal(t, found.model.net.state_dict()[k])
    ]
    assert changed == [f"{CONV}.weight"] == list(made.coded)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_estimated_costs_of_widths_and_ranks_are_those_of_the_built_model(actions, unit):
    found = actions("width", "rank", with_refit=False)
    count = count_macs if unit == "macs" else count_parameters
    costs = AllocationCosts(found, unit, count(found.model))
    assert costs.total({}) == pytest.approx(count(found.model))
    for site, levels in found.levels.items():
        allocation = {site: levels[-1]}
        biases = 0.02 if site.kind == "rank" and unit == "parameters" else 1e-9
        assert costs.total(allocation) == pytest.approx(count(found.build(allocation)), rel=biases)
        saving = costs.saving({}, site, levels[-1])
        assert saving == pytest.approx(costs.total({}) - costs.total(allocation))
    widths = {site: v[-1] for site, v in found.levels.items() if site.kind == "width"}
    assert costs.total(widths) == pytest.approx(count(found.build(widths)))


def test_estimated_bytes_are_close_to_those_of_the_file(actions):
    found = actions("bits", "width", with_refit=False)
    for level in (3, 6):
        bits = {s: level for s in found.levels if s.kind == "bits"}
        coded = {(site, level): found.alone(site, level)[1] for site in bits}
        costs = AllocationCosts(found, "bytes", file_size(found.model), coded)
        narrow = {s: v[-1] for s, v in found.levels.items() if s.kind == "width"}
        for allocation in (bits, bits | narrow):
            assert costs.total(allocation) == pytest.approx(
                file_size(found.build(allocation)), rel=0.1
            )


def test_bits_of_a_layer_that_has_become_two_go_for_both(actions):
    found = actions("bits", "rank")
    made = found.build({Site("rank", CONV): 0.4, Site("bits", f"{CONV}.weight"): 4})
    assert {key: code.bits for key, code in made.coded.items()} == {
        f"{CONV}.reduce.weight": 4,
        f"{CONV}.expand.weight": 4,
    }


def test_no_layer_loses_channels_and_becomes_two(actions):
    found = actions("width", "rank")
    assert found.conflict(Site("width", CONV), Site("rank", "layer1.0.conv2"))
    assert not found.conflict(Site("width", CONV), Site("rank", "layer2.0.conv2"))
    assert not found.conflict(Site("width", CONV), Site("width", "layer2.0.conv1"))
    for allocation in uniform_allocations(found):
        assert not any(found.conflict(a, b) for a in allocation for b in allocation)


@pytest.fixture
def chain():
    """Linear layers whose damages are given, not measured."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    model = Wrapped(net, torch.randn(4, 64)).eval()
    found = Actions(model, Context(None, None), torch.randn(8, 64), ("bits",))
    coded = {(s, v): int(64 * 64 * v / 8) for s, levels in found.levels.items() for v in levels}
    sensitivity = {site: 10.0**-i for i, site in enumerate(found.levels)}
    of = {(s, v): sensitivity[s] * 4.0**-v for s, v in coded}
    return found, of, AllocationCosts(found, "bytes", file_size(model), coded)


def test_the_sensitive_layer_keeps_its_bits_and_the_budget_is_met(chain):
    found, of, costs = chain
    (allocation,) = allocate(found, of, costs, [costs.whole * 0.14])
    bits = [allocation.get(site, 32) for site in found.levels]
    assert bits == sorted(bits, reverse=True) and bits[0] > bits[-1]
    assert costs.total(allocation) <= costs.whole * 0.14


def test_greedy_steps_come_within_a_hair_of_the_best_of_compression_variants(chain):
    found, of, costs = chain
    sites = list(found.levels)[:2]
    found.levels = {site: found.levels[site] for site in sites}
    allocations = [{sites[0]: a, sites[1]: b} for a in range(2, 9) for b in range(2, 9)]
    allocations += [{site: v} for site in sites for v in range(2, 9)]
    for share in (0.7, 0.62, 0.58):
        budget = costs.whole * share
        best = min(predict_damage(p, of) for p in allocations if costs.total(p) <= budget)
        (allocation,) = allocate(found, of, costs, [budget])
        assert costs.total(allocation) <= budget and predict_damage(allocation, of) <= 1.3 * best


def test_a_smaller_budget_never_damages_less_and_one_out_of_reach_has_no_plan(chain):
    found, of, costs = chain
    shares = (0.25, 0.2, 0.16, 0.12, 0.01)
    allocations = allocate(found, of, costs, [s * costs.whole for s in shares])
    assert allocations[-1] is None
    damages = [predict_damage(allocation, of) for allocation in allocations[:-1]]
    assert damages == sorted(damages) and damages[0] < damages[-1]


def test_no_uniform_plan_of_the_same_cost_is_predicted_to_be_better(chain):
    found, of, costs = chain
    uniform = [(allocation, costs.total(allocation)) for allocation in uniform_allocations(found)]
    assert len(uniform) == 7
    for allocation, cost in uniform:
        (searched,) = allocate(found, of, costs, [cost])
        assert predict_damage(searched, of) <= predict_damage(allocation, of) * (1 + 1e-9)
        assert best_uniform_within(uniform, of, cost) == allocation
    assert best_uniform_within(uniform, of, 0) is None


@pytest.mark.parametrize("measure", ["cosine", "cka"])
def test_damage_is_zero_for_the_same_about_one_for_unrelated_and_worst_for_nan(measure):
    a_ND, b_ND = torch.randn(300, 8), torch.randn(300, 8)
    assert damage(a_ND, a_ND, measure) == pytest.approx(0, abs=1e-6)
    assert damage(a_ND, b_ND, measure) == pytest.approx(1, abs=0.15)
    assert damage(a_ND * float("nan"), b_ND, measure) == 2
