"""The command `ssdistill benchmark`: parsing and printing only."""

import argparse
import json
from pathlib import Path

from ssdistill.errors import UserError

SUMMARY = "time the trainings of an experiment on this machine"
DESCRIPTION = """\
Time the pretraining and the distillation of a config on this machine, in images per second:
the whole training, its parts, and the networks alone (forward, backward and optimizer on views
that are ready), which no loop around them can exceed. All take turns. Nothing is written to the
runs folder; images are generated, of the size of the config's images.
"""
EPILOG = """\
examples:
  ssdistill benchmark
  ssdistill benchmark pretrain/simclr/cifar10 --against lightly
  ssdistill benchmark quickstart data.kind=folder data.path=photos --own-images
"""
DEFAULT = "quickstart"


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    """Add the `benchmark` command to the parser."""
    parser = commands.add_parser(
        "benchmark",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="ssdistill benchmark [options] [CONFIG] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_benchmark)
    add = parser.add_argument
    add("words", nargs="*", metavar="CONFIG | key=value",
        help=f"a YAML file or a packaged config (default: {DEFAULT}), and settings")  # fmt: skip
    add("--steps", type=int, default=10, help="optimizer steps per turn (default: 10)")
    add("--rounds", type=int, default=5, help="turns of each program (default: 5)")
    add("--only", metavar="ROLE", help="time one training, such as teacher or distilled")
    add("--against", choices=("lightly",),
        help="also time lightly's SimCLR, as in its documentation, in float32")  # fmt: skip
    add("--compile", action=argparse.BooleanOptionalAction, default=None,
        help="also time compiled encoders (default: on a GPU)")  # fmt: skip
    add("--own-images", action="store_true",
        help="read the images of the config, stored temporarily, not generated ones")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all results to FILE")


def _benchmark(options: argparse.Namespace) -> int:
    # Here, so that other commands start no later.
    import tempfile

    from ssdistill.chain.benchmark import benchmark
    from ssdistill.chain.processes import refuse_several_processes
    from ssdistill.commands.benchmark_results import lines_of, results, table
    from ssdistill.experiment.reading import load_experiment
    from ssdistill.files import check_writable, write_atomically
    from ssdistill.terminal.console import complain, show, tell

    refuse_several_processes()
    for name in ("steps", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: expected a number from 1")
    config, overrides = config_and_overrides(options.words)
    if options.json:
        check_writable(options.json, "--json")
    experiment, notices = load_experiment(config, overrides)
    for notice in notices:
        complain(notice)
    with tempfile.TemporaryDirectory(prefix="ssdistill-benchmark-") as folder, _Bar() as bar:
        timings = benchmark(
            experiment,
            Path(folder),
            steps=options.steps,
            rounds=options.rounds,
            compiled=options.compile,
            against_lightly=options.against == "lightly",
            own_images=options.own_images,
            only=options.only,
            announce=bar.show,
        )
    show(table(timings, options.steps).to_rich())
    for timing in timings:
        for line in lines_of(timing):
            tell(line)
    if options.json:
        content = {
            "config": config,
            "overrides": overrides,
            "steps": options.steps,
            "images": "own" if options.own_images else "generated",
            **results(timings),
        }
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    return 0


def config_and_overrides(words: list[str]) -> tuple[str, list[str]]:
    """The config and the overrides of a command line.

    Raises:
        UserError: several configs.
    """
    configs = [word for word in words if "=" not in word]
    if len(configs) > 1:
        raise UserError(f"benchmark: several configs ({', '.join(configs)}); name one")
    return (*configs, DEFAULT)[0], [word for word in words if "=" in word]


class _Bar:
    """Progress on standard error: a bar, or a line per training without a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from ssdistill.train.progress import console

        self.console, self._role = console, ""
        self._bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.has_bars,
        )

    def __enter__(self) -> "_Bar":
        self._bar.start()
        self._line = self._bar.add_task("preparing", total=None)
        return self

    def show(self, role: str, total: int, program: str, number: int) -> None:
        if role != self._role and self._bar.disable:
            self.console.print(f"  {role}: {total} turns")
        self._role = role
        self._bar.update(
            self._line, description=f"{role}: {program}", total=total, completed=number
        )

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
