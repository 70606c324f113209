"""Plan the points of a sweep: how many stages they have, share, and lack."""

from dataclasses import dataclass

from ssdistill.chain.plan import plan_stages
from ssdistill.chain.requirements import check_batches, check_steps
from ssdistill.chain.sweep import Sweep
from ssdistill.chain.sweep_points import Point
from ssdistill.chain.workspace import open_workspace
from ssdistill.data.undecoded import undecoded_of
from ssdistill.errors import UserError

MOST_PLANNED = 300
"""Points that are planned beforehand; planning one takes a few hundredths of a second or more."""


@dataclass(frozen=True)
class PlannedPoint:
    """A point and its stages.

    Attributes:
        stages: how many it has.
        shared: those that points before it have, too.
        missing: those that neither a point before it has nor the runs folder.
    """

    point: Point
    stages: int
    shared: int
    missing: int


def plan_points(sweep: Sweep) -> list[PlannedPoint]:
    """Plan the points that are known beforehand, of many the first ones.

    Decodes, trains and writes nothing.

    Raises:
        UserError: a point that cannot be run, and why.
    """
    planned, seen = [], set()
    for number, values in enumerate((sweep.points or [])[:MOST_PLANNED]):
        point, experiment = Point(number, values), sweep.experiments[number]
        try:
            workspace = open_workspace(experiment, sweep.workspace.root, decode=False)
            check_batches(experiment, len(workspace.train))
            check_steps(experiment)
            stages = plan_stages(workspace)
        except UserError as error:
            raise UserError(f"sweep point {point}: {error}") from None
        keys = {(stage.digest, stage.seed): stage for stage in stages}
        new = {key: stage for key, stage in keys.items() if key not in seen}
        unread = bool(undecoded_of([workspace.train, workspace.test]))
        missing = [s for s in new.values() if unread or s.status(workspace.root) != "finished"]
        planned.append(PlannedPoint(point, len(keys), len(keys) - len(new), len(missing)))
        seen |= new.keys()
    return planned
