"""Meet a budget by measured rather than predicted cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ssdistill.artifacts.coding.file import pack_state
from ssdistill.compress import Context
from ssdistill.compress.budget import share_of, weight_bytes
from ssdistill.compress.searching.actions import Actions, Plan
from ssdistill.compress.searching.allocate import allocate
from ssdistill.compress.searching.damages import Damages
from ssdistill.compress.searching.plan_costs import PlanCosts
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model

TRIES = 7
"""Most models built to meet a budget."""
CLOSE = 0.95
"""Fraction of a latency budget that counts as reached."""
Share = Callable[[Model], float]


def file_size(model: Model) -> int:
    """Bytes of the weights file the model would be saved as."""
    if not model.coded:
        return weight_bytes(model)
    return len(pack_state(model.net.state_dict(), model.coded)[0])


@contextmanager
def measuring(budget: str, model: Model) -> Iterator[tuple[Share, float]]:
    """What a budget measures.

    Yields:
        ``share(other)``: measured cost of another model as a share of that of ``model``; and
        the cost of ``model`` in the unit that plans are made in: multiply-accumulates for
        ``latency``.
    """
    if budget == "bytes":
        whole = file_size(model)
        yield lambda other: file_size(other) / whole, whole
        return
    count = count_parameters if budget == "parameters" else count_macs
    with share_of(budget, model) as share:
        yield share, count(model)


def within(
    budget: str,
    share: float,
    actions: Actions,
    damages: Damages,
    costs: PlanCosts,
    measure: Share,
    context: Context,
) -> tuple[Plan, Model, float]:
    """The plan whose model measures at most ``share`` of the whole, that model, and its share.

    Estimates decide which plan is tried; where the model measures more, or takes much less time
    than it may, the next plan's estimate is moved by as much.

    Raises:
        UserError: out of reach; the nearest share is named.
    """
    whole, target, best = costs.whole, share, None
    low, high = (0.0, 0.0), (1.0, 1.0)
    for tried in context.progress(range(TRIES), f"plan for {share:.0%} of {budget}"):
        (plan,) = allocate(actions, damages.of, costs, [target * whole])
        if plan is None or not plan:
            break
        compressed = actions.build(plan)
        measured = measure(compressed)
        if measured <= share and (best is None or measured > best[2]):
            best = plan, compressed, measured
        if measured <= share and (budget != "latency" or measured >= CLOSE * share):
            break
        low, high = ((target, measured), high) if measured <= share else (low, (target, measured))
        if budget == "latency":
            slope = (high[0] - low[0]) / max(high[1] - low[1], 1e-9)
            target = low[0] + slope * (0.98 * share - low[1])
        else:
            # Ever further below, so that tensors of a few kilobytes do not go in circles.
            target = (1 - 0.002 * 2**tried) * costs.total(plan) / whole * share / measured
    if best is None:
        raise UserError(_out_of_reach(budget, share, actions, costs, measure))
    return best


def _out_of_reach(
    budget: str, share: float, actions: Actions, costs: PlanCosts, measure: Share
) -> str:
    severest: Plan = {}
    for site, levels in actions.levels.items():
        if not any(actions.conflict(site, other) for other in severest):
            severest[site] = levels[-1]
    least = measure(actions.build(severest))
    return (
        f"search: {budget}={share:g} cannot be reached for '{actions.model.name}': the most severe "
        f"actions on all {len(severest)} of its sites still leave {least:.3f}"
    )
