"""Bisect how much to remove, from 0 to 1, to a cost or an agreement with a reference."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from ssdistill.compress import Context
from ssdistill.compress.comparing import relative_cost
from ssdistill.errors import UserError
from ssdistill.models.model import Model

HALVINGS = {"macs": 8, "parameters": 8, "bytes": 8, "cka": 8, "latency": 5}
"""Bisections of the ratio: 1/256 is finer than any rounding to multiples of 8, 1/32 than a time
can be measured."""

Result = TypeVar("Result")


def bisect(
    good: float,
    bad: float,
    result_at_good: Result,
    evaluate: Callable[[float], Result],
    accept: Callable[[Result], bool],
    halvings: Iterable[object],
) -> tuple[float, Result]:
    """Move ``good`` towards ``bad`` as far as results are accepted; return it and its result.

    Whatever is returned has been evaluated and accepted, also where results do not change evenly
    in between. ``good`` itself is not checked.

    Args:
        good, bad: ends of the interval, in either order.
        halvings: one halving of the interval for each item.
    """
    for _ in halvings:
        middle = (good + bad) / 2
        result = evaluate(middle)
        if accept(result):
            good, result_at_good = middle, result
        else:
            bad = middle
    return good, result_at_good


def bisect_to_cka(
    floor: float,
    make: Callable[[float], Model],
    cka: Callable[[Model], float],
    context: Context,
) -> tuple[float, float]:
    """The largest ratio found whose model agrees at least as much as ``floor``, and its CKA.

    Args:
        make: the model after removing that ratio of what can be removed; 0 removes nothing.
        cka: of :func:`ssdistill.compress.comparing.cka_with`.
    """
    return bisect(
        0.0,
        1.0,
        cka(make(0.0)),
        lambda ratio: cka(make(ratio)),
        lambda value: value >= floor,  # False for NaN
        context.progress(range(HALVINGS["cka"]), f"prune to a CKA of {floor:g}"),
    )


def bisect_to_budget(
    key: str,
    budget: float,
    make: Callable[[float], Model],
    reference: Model,
    context: Context,
    limits: str,
) -> tuple[float, float]:
    """The smallest ratio found whose model costs at most ``budget``, and its relative cost.

    Args:
        key: of :func:`ssdistill.compress.comparing.relative_cost`.
        budget: fraction of the reference's cost.
        make: the model after removing that ratio of what can be removed.
        limits: what the message about a budget out of reach says of the settings.

    Raises:
        UserError: out of reach; the nearest fraction that can be reached is given.
    """
    with relative_cost(key, reference) as cost:
        least = cost(make(1.0))
        if least > budget:
            raise UserError(
                f"prune: {key}={budget:g} cannot be reached for '{reference.name}': "
                f"{limits} still leave {least:.3f}; raise {key}"
            )
        if (already := cost(make(0.0))) <= budget:
            return 0.0, already
        return bisect(
            1.0,
            0.0,
            least,
            lambda ratio: cost(make(ratio)),
            lambda fraction: fraction <= budget,
            context.progress(range(HALVINGS[key]), f"prune to {budget:.0%} of {key}"),
        )
