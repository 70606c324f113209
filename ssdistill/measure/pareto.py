"""Pareto front of searched and uniform plans over many budgets."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError, no_file, one_line
from ssdistill.files import write_atomically

FRONT = "front.json"


@dataclass(frozen=True)
class FrontPoint:
    """The searched plan and the best uniform plan at one budget.

    Attributes:
        share: the largest fraction of the cost that the plan may have.
        cost, uniform_cost: estimated cost of the two plans in the budget's unit; None where no
            uniform plan is within the budget.
        predicted: sum of the damages that the plan's actions do alone.
        measured, uniform_measured: damage of the two models, on inputs that neither choice has
            seen.
        plan: what is done where, in words.
    """

    share: float
    cost: float
    predicted: float
    measured: float
    uniform_cost: float | None = None
    uniform_measured: float | None = None
    plan: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Front:
    """Points in decreasing order of the budget.

    Attributes:
        model: its name.
        unit: what the budget counts: ``bytes``, ``macs`` or ``parameters``.
        whole: the cost of the model as it is.
        measure: what damage is: ``cosine`` or ``cka``.
    """

    model: str
    unit: str
    whole: float
    measure: str
    points: tuple[FrontPoint, ...] = ()

    @property
    def pareto(self) -> tuple[FrontPoint, ...]:
        """The searched plans that no cheaper one equals in measured damage, cheapest first."""
        front: list[FrontPoint] = []
        for point in sorted(self.points, key=lambda p: (p.cost, p.measured)):
            if not front or point.measured < front[-1].measured:
                front.append(point)
        return tuple(front)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def load_front(path: Path) -> Front:
    """Load a front written by :meth:`Front.save`.

    Raises:
        UserError: no such file, or another one.
    """
    try:
        facts = json.loads(path.read_text())
        points = tuple(FrontPoint(**point) for point in facts.pop("points"))
        return Front(**facts, points=points)
    except FileNotFoundError:
        raise UserError(no_file(path, "name the folder of a search step")) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a Pareto front written by search "
            f"({one_line(error)}); name the folder of a search step"
        ) from error
