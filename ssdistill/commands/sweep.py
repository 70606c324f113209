"""``ssdistill run`` of a config with a ``sweep``."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from ssdistill.errors import UserError
from ssdistill.experiment.reading import read_config
from ssdistill.files import is_remote
from ssdistill.terminal.console import say, show

if TYPE_CHECKING:
    from ssdistill.chain.sweep_points import Outcome


def run_sweep_command(options: argparse.Namespace) -> int:
    """Run, or show, the points of a sweep; returns the exit status.

    Raises:
        UserError: what the user can mend; no point finished.
    """
    from ssdistill.chain.executors.choice import executor_for
    from ssdistill.chain.processes import refuse_several_processes
    from ssdistill.chain.run import describe_data, run
    from ssdistill.chain.side_by_side import finish_side_by_side
    from ssdistill.chain.sweep import open_sweep, run_sweep
    from ssdistill.chain.sweep_plan import plan_points
    from ssdistill.chain.sweep_report import make_sweep_report, plan_table

    refuse_several_processes()
    if options.publish:
        raise UserError(
            "--publish: a sweep has no table of models; run the chosen point with --publish"
        )
    if is_remote(options.runs):
        raise UserError(f"--runs {options.runs}: a sweep requires a folder; choose one with --runs")
    written = read_config(options.config, options.overrides)
    settings = written.experiment().sweep
    if options.on and settings and settings.stop_early:
        raise UserError(
            "--on: points are stopped early only where their stages run in this process; omit "
            "--on, or set sweep.stop_early=null"
        )
    sweep = open_sweep(written, options.runs, decode=not options.dry_run)
    if options.dry_run:
        describe_data(sweep.workspace)
        show(plan_table(sweep, plan_points(sweep)).to_rich())
        return 0
    plan = plan_table(sweep, plan_points(sweep))
    say(plan.caption.partition(" 'shared'")[0])

    def show_outcomes(outcomes: "dict[int, Outcome]") -> None:
        make_sweep_report(sweep, outcomes)

    with executor_for(options.on, options.trust) as executor:
        together = partial(finish_side_by_side, executor=executor) if options.on else None
        outcomes = run_sweep(sweep, show_outcomes, partial(run, executor=executor), together)
    report = make_sweep_report(sweep, outcomes)
    show(report.table.to_rich())
    say(f"sweep: {report.folder / 'sweep.html'}")
    if best := report.best:
        say(f"report of point {best.point + 1}: {options.runs / best.report / 'report.html'}")
        if best.model:
            say(f"{sweep.role} model of point {best.point + 1}: {options.runs / best.model}")
        say(f"to run it by itself: {report.command}")
    return 0
