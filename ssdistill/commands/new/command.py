"""Arguments and output of `ssdistill new`."""

import argparse
from pathlib import Path

from ssdistill.terminal.console import say

FAMILIES = ("loss", "method", "step", "teacher", "protocol", "source", "network")
SUMMARY = "write a small package with a loss, method, step, … of your own"
DESCRIPTION = """\
Write a small package with a kind of your own, which works from the start: a class
with settings and an example, a config that runs in seconds on scikit-learn's digits, and a
test with the checks that ssdistill's own kinds pass.
"""
EPILOG = """\
example:
  ssdistill new loss my_loss       writes my_loss/ with the package my_loss in it
  pip install -e my_loss
  ssdistill list losses my_loss
  ssdistill run my_loss/config.yaml
"""


def add_new(commands: argparse._SubParsersAction) -> None:
    """Add the `new` command to the parser."""
    parser = commands.add_parser(
        "new",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_new)
    parser.add_argument("family", choices=FAMILIES, help="what it is to be")
    parser.add_argument("name", help="of the package and of the kind: my_loss")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="where to put the package's folder (default: .)",
    )


def _new(options: argparse.Namespace) -> int:
    # Here, so that other commands start no later.
    from ssdistill.commands.new.package import write_package

    folder = write_package(options.family, options.name, options.into)
    say(f"{folder}: install it with `pip install -e {folder}`; README.md says what to do then")
    return 0
