"""The command line: parsing and printing only."""

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ssdistill.commands.benchmark import add_benchmark
from ssdistill.commands.data.group import add_data
from ssdistill.commands.embed import add_embed
from ssdistill.commands.failures import (
    explanation,
    is_another_process,
    require_current_folder,
    save_report,
)
from ssdistill.commands.new.command import add_new
from ssdistill.commands.parser import EXIT_USER_ERROR, Parser
from ssdistill.commands.plugins import without_imports
from ssdistill.commands.probe.command import add_probe
from ssdistill.commands.restore import add_restore
from ssdistill.errors import UserError, shortened, was_interrupted
from ssdistill.experiment.overrides import plain_overrides
from ssdistill.files import check_writable, folder_or_address, is_remote
from ssdistill.terminal.console import complain, forgiving_streams, output_width, say, show, tell

EXIT_INTERNAL, EXIT_INTERRUPTED = 70, 130

EPILOG = """\
examples:
  ssdistill run quickstart                          the whole chain on scikit-learn's digits
  ssdistill run quickstart data=cifar10             the same on CIFAR-10 (downloads)
  ssdistill run quickstart data.kind=folder data.path=photos
  ssdistill run quickstart pretrain.kind=byol seeds=[0,1,2]
  ssdistill run quickstart --dry-run                show the plan; train nothing
  ssdistill probe student/ student_int8/ --data photos/   evaluate and compare encoders
  ssdistill embed student/ photos/ --out photos.npy       embeddings of images, as a file

Opening a file never runs it, except compiled models (AOTInductor), which need --trust
unless they were compiled here.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    with forgiving_streams():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    # It may stand before the command or after it.
    debug = "--debug" in words
    options = None
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    try:
        require_current_folder()
        options = _parse(without_imports([word for word in words if word != "--debug"]))
        return options.command(options)
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, words, getattr(options, "runs", None), debug)


def _failed(error: BaseException, words: Sequence[str], runs: object, debug: bool) -> int:
    """Print a one-line error; write a report if it is an internal error."""
    if is_another_process():
        return EXIT_USER_ERROR
    if debug and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    if text := explanation(error):
        complain(f"error: {text}")
        return EXIT_USER_ERROR
    if was_interrupted(error):
        complain("Interrupted. Run the same command to resume.")
        return EXIT_INTERRUPTED
    report = save_report(error, words, runs if isinstance(runs, Path) else None)
    reason = shortened(f"{type(error).__name__}: {error}", 300)
    place = f"a report for the developers is in {report}" if report else "add --debug to see where"
    complain(f"internal error: {reason}; {place}")
    return EXIT_INTERNAL


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; overrides may also follow options, unlike in argparse alone."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if command in ("run", "reproduce"):
        words = _plain_words(words, parser, command)
    options, rest = parser.parse_known_args(words)
    named = vars(options)
    loose = named.get("words", named.get("overrides"))
    foreign = [w for w in rest if w.startswith("-") or not ("words" in named or "=" in w)]
    if foreign or (rest and loose is None):
        parser.below(w for w in words if not w.startswith("-")).refuse(foreign or rest)
    if loose is not None:
        loose += rest
    return options


def _plain_words(words: list[str], parser: Parser, command: str) -> list[str]:
    """Settings in the spellings of other programs as ``key=value``."""
    try:
        return plain_overrides(words, parser.options(command))
    except UserError as error:
        parser.error(str(error))


def _parser() -> Parser:
    parser = Parser(
        prog="ssdistill",
        description="Distill, prune and quantize self-supervised vision encoders without labels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument(
        "--debug",
        action="store_true",
        help="print the traceback of an error (also valid after the command)",
    )
    parser.add_argument(
        "--import",
        metavar="PACKAGE",
        help="import a package that adds kinds (also valid after the command)",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    run = _add(commands, "run", _run, "run an experiment: resume it, reuse finished stages")
    _experiment_arguments(run)
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan and stop; decode and train nothing"
    )
    run.add_argument(
        "--publish",
        type=Path,
        metavar="FOLDER",
        help="also write the results to FOLDER/records.jsonl, the source of README tables",
    )
    run.add_argument("--stage", help=argparse.SUPPRESS)  # for tasks of a cluster

    reproduce = _add(
        commands,
        "reproduce",
        _reproduce,
        "run an experiment and verify its claims",
        "Exit status: 0 all claims hold, 1 one fails, 3 some are undecided, 2 an error.",
    )
    _experiment_arguments(reproduce)

    add_probe(commands)
    add_embed(commands)
    add_data(commands)
    add_benchmark(commands)

    report = _add(commands, "report", _report, "update the tables in README files from records")
    report.add_argument(
        "--check", action="store_true", help="check only; exit 1 if a table is out of date"
    )
    report.add_argument("--root", type=Path, default=Path("."), help="project folder (default: .)")

    add_restore(commands)
    add_new(commands)

    listing = _add(commands, "list", _list, "list losses, methods, teachers, … and their settings")
    listing.add_argument(
        "what",
        nargs="?",
        help="losses, methods, teachers, steps, runtimes, protocols, sources, networks, views or "
        "configs; default: all",
    )
    listing.add_argument("kind", nargs="?", help="one of them, to show with all its settings")
    return parser


def _add(commands, name: str, command, summary: str, more: str = "") -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}. {more}"
    parser = commands.add_parser(name, help=summary, description=description)
    parser.set_defaults(command=command)
    return parser


def _experiment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or the name of a packaged config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to override")
    summary = "runs folder, or an address such as s3://bucket/runs (default: runs)"
    parser.add_argument("--runs", type=folder_or_address, default=Path("runs"), help=summary)
    parser.add_argument(
        "--on",
        metavar="CLUSTER",
        help="run stages in parallel with Ray: ray (this machine), ray://host:port, host:port",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run compiled models (AOTInductor) in the runs folder that were not compiled here",
    )


def _run(options: argparse.Namespace) -> int:
    experiment = _load(options)
    if experiment.sweep:
        from ssdistill.commands.sweep import run_sweep_command

        return run_sweep_command(options)
    if options.dry_run:
        from ssdistill.chain.processes import refuse_several_processes
        from ssdistill.chain.run import dry_run
        from ssdistill.commands.listing import plan_table

        refuse_several_processes()
        show(plan_table(dry_run(experiment, options.runs)))
        return 0
    if options.stage:
        from ssdistill.chain.executors.stage_processes import run_stage

        return run_stage(experiment, options.runs, options.stage)
    if options.publish:
        check_writable(options.publish / "records.jsonl", "--publish")
    report = _execute(experiment, options)
    if options.publish:
        report.publish(options.publish)
        say(f"records: {options.publish / 'records.jsonl'}")
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from ssdistill.chain.checks import require_claims
    from ssdistill.report.verdict import exit_code

    experiment = _load(options)
    require_claims(experiment, options.config)
    return exit_code(_execute(experiment, options).verdicts)


def _load(options: argparse.Namespace):
    from ssdistill.experiment.reading import load_experiment

    if options.trust and not is_remote(options.runs):
        from ssdistill.artifacts.runtimes.compiled_here import trust_stages

        trust_stages(options.runs)
    experiment, notices = load_experiment(options.config, options.overrides)
    for notice in notices:
        complain(notice)
    return experiment


def _execute(experiment, options: argparse.Namespace):
    from ssdistill.chain.executors.choice import executor_for
    from ssdistill.chain.run import run

    with executor_for(options.on, options.trust) as executor:
        report = run(experiment, options.runs, executor)
    for table in report.tables:
        show(table.to_rich())
    for notice in report.notices:
        tell(notice)
    last = list(report.models)[-1]
    say(f"{last} model: {report.models[last]}")
    say(f"report: {report.folder / 'report.html'}")
    return report


def _report(options: argparse.Namespace) -> int:
    from ssdistill.report.readme import write_reports

    outdated = write_reports(options.root, check=options.check)
    for block in outdated:
        say(block if options.check else f"{block.file}: block '{block.block}' rewritten")
    if options.check and outdated:
        complain("run `ssdistill report` to rewrite them from the records")
        return 1
    return 0


def _list(options: argparse.Namespace) -> int:
    from ssdistill.commands.listing import description, listings

    if options.kind:
        shown = description(options.what, options.kind, output_width())
    else:
        shown = listings(options.what)
    for table in shown:
        show(table)
    return 0


def _version() -> str:
    from importlib.metadata import version

    return f"ssdistill {version('ssdistill')}"


if __name__ == "__main__":
    sys.exit(main())
