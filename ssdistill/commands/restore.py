"""The command `ssdistill restore`: the uncompressed model of a compressed one."""

import argparse
from pathlib import Path

from ssdistill.errors import UserError
from ssdistill.files import check_writable
from ssdistill.terminal.console import say

SUMMARY = "find the uncompressed model of a compressed one"
DESCRIPTION = "Find the uncompressed model of a compressed one. Print its folder, or copy it."


def add_restore(commands: argparse._SubParsersAction) -> None:
    """Add the `restore` command to the parser."""
    parser = commands.add_parser("restore", help=SUMMARY, description=DESCRIPTION)
    parser.set_defaults(command=_restore)
    parser.add_argument("artifact", type=Path, help="folder of the compressed model")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="copy the uncompressed model to FOLDER"
    )


def _restore(options: argparse.Namespace) -> int:
    # Here, so that other commands start no later.
    import shutil

    from ssdistill.compress.restore import uncompressed_parent

    folder = uncompressed_parent(options.artifact)
    if options.to:
        if options.to.exists() and any(options.to.iterdir()):
            raise UserError(
                f"restore --to {options.to}: the folder is not empty; choose another one"
            )
        check_writable(options.to / "model.json", "--to")
        folder = Path(shutil.copytree(folder, options.to, dirs_exist_ok=True))
    say(folder)
    return 0
