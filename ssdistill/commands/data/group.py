"""The command `ssdistill data`: its subcommands are the files of this folder."""

import argparse
import importlib
import pkgutil
from pathlib import Path

SUMMARY = "prepare and examine images"


def add_data(commands: argparse._SubParsersAction) -> None:
    """Add the `data` command to the parser, with a subcommand for each file here.

    Such a file has a function ``add``, which takes the subcommands' parsers and adds its own,
    with the function that does it as the default of ``command``. It imports what it works with
    when it is run, so that other commands start no later.
    """
    parser = commands.add_parser(
        "data", help=SUMMARY, description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}."
    )
    subcommands = parser.add_subparsers(
        required=True, metavar="subcommand", help="what to do with the images"
    )
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{__package__}.{info.name}")
        if hasattr(module, "add"):
            module.add(subcommands)
