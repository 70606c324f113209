"""Meet a budget by measured rather than predicted cost."""

from collections.abc import Iterator
from contextlib import contextmanager

from ssdistill.artifacts.coding.file import pack_state
from ssdistill.compress import Context
from ssdistill.compress.comparing import RelativeCost, relative_cost, weight_bytes
from ssdistill.compress.searching.actions import Actions, Allocation
from ssdistill.compress.searching.allocate import allocate
from ssdistill.compress.searching.allocation_costs import AllocationCosts
from ssdistill.compress.searching.damages import Damages
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model

TRIES = 7
"""Most models built to meet a budget."""
CLOSE = 0.95
"""Fraction of a latency budget that counts as reached."""


def file_size(model: Model) -> int:
    """Bytes of the weights file the model would be saved as."""
    if not model.coded:
        return weight_bytes(model)
    return len(pack_state(model.net.state_dict(), model.coded)[0])


@contextmanager
def measured_cost(budget: str, model: Model) -> Iterator[tuple[RelativeCost, float]]:
    """How to measure what a budget limits.

    Yields:
        ``cost(other)``: measured cost of another model as a fraction of that of ``model``; and
        the cost of ``model`` in the unit that allocations are made in: multiply-accumulates for
        ``latency``.
    """
    if budget == "bytes":
        whole = file_size(model)
        yield lambda other: file_size(other) / whole, whole
        return
    count = count_parameters if budget == "parameters" else count_macs
    with relative_cost(budget, model) as cost:
        yield cost, count(model)


def allocate_within(
    budget: str,
    fraction: float,
    actions: Actions,
    damages: Damages,
    costs: AllocationCosts,
    cost_of: RelativeCost,
    context: Context,
) -> tuple[Allocation, Model, float]:
    """The allocation whose model costs at most ``fraction`` of the whole, as measured.

    Estimates decide which allocation is tried; where the model measures more, or takes much less
    time than it may, the next allocation's estimate is moved by as much.

    Returns:
        the allocation, its model, and the measured fraction.

    Raises:
        UserError: out of reach; the nearest fraction is named.
    """
    whole, target, best = costs.whole, fraction, None
    low, high = (0.0, 0.0), (1.0, 1.0)
    for tried in context.progress(range(TRIES), f"plan for {fraction:.0%} of {budget}"):
        (allocation,) = allocate(actions, damages.of, costs, [target * whole])
        if allocation is None or not allocation:
            break
        compressed = actions.build(allocation)
        measured = cost_of(compressed)
        if measured <= fraction and (best is None or measured > best[2]):
            best = allocation, compressed, measured
        if measured <= fraction and (budget != "latency" or measured >= CLOSE * fraction):
            break
        low, high = (
            ((target, measured), high) if measured <= fraction else (low, (target, measured))
        )
        if budget == "latency":
            slope = (high[0] - low[0]) / max(high[1] - low[1], 1e-9)
            target = low[0] + slope * (0.98 * fraction - low[1])
        else:
            # Ever further below, so that tensors of a few kilobytes do not go in circles.
            target = (1 - 0.002 * 2**tried) * costs.total(allocation) / whole * fraction / measured
    if best is None:
        raise UserError(_budget_error(budget, fraction, actions, costs, cost_of))
    return best


def _budget_error(
    budget: str, fraction: float, actions: Actions, costs: AllocationCosts, cost_of: RelativeCost
) -> str:
    severest: Allocation = {}
    for site, levels in actions.levels.items():
        if not any(actions.conflict(site, chosen) for chosen in severest):
            severest[site] = levels[-1]
    least = cost_of(actions.build(severest))
    return (
        f"search: {budget}={fraction:g} cannot be reached for '{actions.model.name}': the most "
        f"severe actions on all {len(severest)} of its sites still leave {least:.3f}; raise "
        f"{budget}"
    )
