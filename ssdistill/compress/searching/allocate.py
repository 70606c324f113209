"""Allocate compression to layers: least predicted damage within a budget."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from ssdistill.compress.searching.actions import Actions, Plan, Site
from ssdistill.compress.searching.plan_costs import PlanCosts

Damages = Mapping[tuple[Site, float], float]


def predicted(plan: Plan, damages: Damages) -> float:
    """The sum of what every action does alone."""
    return sum(damages[site, level] for site, level in plan.items())


def allocate(
    actions: Actions, damages: Damages, costs: PlanCosts, budgets: Sequence[float]
) -> list[Plan | None]:
    """For every budget the plan that greedy steps lead to; None where none is cheap enough.

    A step is the one with the least more damage for what it saves. At a budget, what was not
    needed to meet it is taken back, most damage for its cost first.
    """
    plan: Plan = {}
    plans: dict[float, Plan | None] = {}
    cost = costs.total(plan)
    for budget in sorted(set(budgets), reverse=True):
        while cost > budget and (step := _best_step(plan, actions, damages, costs)):
            site, level = step
            cost -= costs.saving(plan, site, level)
            plan[site] = level
        plans[budget] = _relaxed(plan, actions, damages, costs, budget) if cost <= budget else None
    return [plans[budget] for budget in budgets]


def _best_step(
    plan: Plan, actions: Actions, damages: Damages, costs: PlanCosts
) -> tuple[Site, float] | None:
    best, least = None, math.inf
    for site, levels in actions.levels.items():
        if any(actions.conflict(site, other) for other in plan):
            continue
        now, start = 0.0, 0
        if site in plan:
            now, start = damages[site, plan[site]], levels.index(plan[site]) + 1
        for level in levels[start:]:
            saving = costs.saving(plan, site, level)
            if saving > 0 and (rate := (damages[site, level] - now) / saving) < least:
                best, least = (site, level), rate
    return best


def _relaxed(
    plan: Plan, actions: Actions, damages: Damages, costs: PlanCosts, budget: float
) -> Plan:
    plan, spare = dict(plan), budget - costs.total(plan)
    while True:
        best, most = None, 0.0
        for site, now in plan.items():
            levels = actions.levels[site]
            for level in (None, *levels[: levels.index(now)]):
                more = -costs.saving(plan, site, level)
                gain = damages[site, now] - (damages[site, level] if level is not None else 0.0)
                if more <= spare and gain > 0 and (rate := gain / max(more, 1e-9)) > most:
                    best, most, price = (site, level), rate, more
        if best is None:
            return plan
        site, level = best
        spare -= price
        if level is None:
            del plan[site]
        else:
            plan[site] = level


def uniform_plans(actions: Actions) -> Iterator[Plan]:
    """The same for every layer: all combinations of a level for each kind of action.

    A layer of which channels and rank could be taken loses channels.
    """
    kinds = sorted({site.kind for site in actions.levels}, reverse=True)
    menus = []
    for kind in kinds:
        every = {v for site, levels in actions.levels.items() if site.kind == kind for v in levels}
        menus.append([None, *sorted(every, reverse=True)])
    for chosen in product(*menus):
        level_by_kind, plan = dict(zip(kinds, chosen, strict=True)), {}
        for site in sorted(actions.levels, key=lambda site: site.kind, reverse=True):
            level = level_by_kind[site.kind]
            if level is None or any(actions.conflict(site, other) for other in plan):
                continue
            # The mildest that is no milder, where a layer does not have the level itself.
            levels = actions.levels[site]
            plan[site] = next((v for v in levels if v <= level), levels[-1])
        if plan:
            yield plan


def best_uniform(
    plans: Sequence[tuple[Plan, float]], damages: Damages, budget: float
) -> Plan | None:
    """The least predicted damage among the plans (with their costs) that meet the budget."""
    within = [plan for plan, cost in plans if cost <= budget]
    return min(within, key=lambda plan: predicted(plan, damages), default=None)
