"""Allocate compression to layers: least predicted damage within a budget."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from ssdistill.compress.searching.actions import Actions, Allocation, Site
from ssdistill.compress.searching.allocation_costs import AllocationCosts

Damages = Mapping[tuple[Site, float], float]


def predict_damage(allocation: Allocation, damages: Damages) -> float:
    """The sum of what every action does alone."""
    return sum(damages[site, level] for site, level in allocation.items())


def allocate(
    actions: Actions, damages: Damages, costs: AllocationCosts, budgets: Sequence[float]
) -> list[Allocation | None]:
    """For every budget the allocation that greedy steps lead to; None where none is cheap enough.

    A step is the one with the least more damage for what it saves. At a budget, what was not
    needed to meet it is taken back, most damage for its cost first.
    """
    allocation: Allocation = {}
    allocations: dict[float, Allocation | None] = {}
    cost = costs.total(allocation)
    for budget in sorted(set(budgets), reverse=True):
        while cost > budget and (step := _best_step(allocation, actions, damages, costs)):
            site, level = step
            cost -= costs.saving(allocation, site, level)
            allocation[site] = level
        allocations[budget] = (
            _relaxed(allocation, actions, damages, costs, budget) if cost <= budget else None
        )
    return [allocations[budget] for budget in budgets]


def _best_step(
    allocation: Allocation, actions: Actions, damages: Damages, costs: AllocationCosts
) -> tuple[Site, float] | None:
    best, least_rate = None, math.inf
    for site, levels in actions.levels.items():
        if any(actions.conflict(site, chosen) for chosen in allocation):
            continue
        current_damage, start = 0.0, 0
        if site in allocation:
            current_damage = damages[site, allocation[site]]
            start = levels.index(allocation[site]) + 1
        for level in levels[start:]:
            saving = costs.saving(allocation, site, level)
            if (
                saving > 0
                and (rate := (damages[site, level] - current_damage) / saving) < least_rate
            ):
                best, least_rate = (site, level), rate
    return best


def _relaxed(
    allocation: Allocation,
    actions: Actions,
    damages: Damages,
    costs: AllocationCosts,
    budget: float,
) -> Allocation:
    allocation, budget_left = dict(allocation), budget - costs.total(allocation)
    while True:
        best, best_rate = None, 0.0
        for site, current_level in allocation.items():
            levels = actions.levels[site]
            for level in (None, *levels[: levels.index(current_level)]):
                extra_cost = -costs.saving(allocation, site, level)
                gain = damages[site, current_level] - (
                    damages[site, level] if level is not None else 0.0
                )
                if (
                    extra_cost <= budget_left
                    and gain > 0
                    and (rate := gain / max(extra_cost, 1e-9)) > best_rate
                ):
                    best, best_rate, price = (site, level), rate, extra_cost
        if best is None:
            return allocation
        site, level = best
        budget_left -= price
        if level is None:
            del allocation[site]
        else:
            allocation[site] = level


def uniform_allocations(actions: Actions) -> Iterator[Allocation]:
    """The same for every layer: all combinations of a level for each kind of action.

    A layer of which channels and rank could be taken loses channels.
    """
    kinds = sorted({site.kind for site in actions.levels}, reverse=True)
    menus = []
    for kind in kinds:
        every = {v for site, levels in actions.levels.items() if site.kind == kind for v in levels}
        menus.append([None, *sorted(every, reverse=True)])
    for levels_chosen in product(*menus):
        level_by_kind, allocation = dict(zip(kinds, levels_chosen, strict=True)), {}
        for site in sorted(actions.levels, key=lambda site: site.kind, reverse=True):
            level = level_by_kind[site.kind]
            if level is None or any(actions.conflict(site, chosen) for chosen in allocation):
                continue
            # The mildest that is no milder, where a layer does not have the level itself.
            levels = actions.levels[site]
            allocation[site] = next((v for v in levels if v <= level), levels[-1])
        if allocation:
            yield allocation


def best_uniform_within(
    allocations: Sequence[tuple[Allocation, float]], damages: Damages, budget: float
) -> Allocation | None:
    """The least predicted damage among the allocations (with their costs) that meet the budget."""
    affordable = [allocation for allocation, cost in allocations if cost <= budget]
    return min(affordable, key=lambda allocation: predict_damage(allocation, damages), default=None)
