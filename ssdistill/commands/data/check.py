"""The command `ssdistill data check`: what is wrong or odd with the images of a source."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssdistill.commands.data.words import SOURCE, data_settings
from ssdistill.errors import UserError

if TYPE_CHECKING:
    from ssdistill.data.checking import Checked, Finding
    from ssdistill.data.settings import StoreSettings
    from ssdistill.report.tables.table import Table

SUMMARY = "find images that are damaged, duplicated, constant, or of unusual size or mode"
DESCRIPTION = f"""\
Read and decode every image of a source and list what is unreadable, duplicated (equal
bytes; with --near, similar embeddings), of one color, of unusual size, or encoded unlike most
others. No label is read, and nothing is changed.

SOURCE is {SOURCE}.
"""
EPILOG = """\
examples:
  ssdistill data check photos/ --out check.html
  ssdistill data check kind=hdf5 path=images.h5 --json check.json
  ssdistill data check cifar10 --near runs/teacher/s0 --cosine 0.98
"""
FIRST = 3
"""Images that are named on the terminal."""


def add(subcommands: argparse._SubParsersAction) -> None:
    """Add the subcommand to the parser."""
    parser = subcommands.add_parser(
        "check",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run_check)
    option = parser.add_argument
    option("words", nargs="*", metavar="SOURCE | key=value", help="the images, and settings")
    option("--out", type=Path, metavar="FILE.html", help="write a contact sheet, one HTML file")
    option("--json", type=Path, metavar="FILE", help="write everything that was found")
    option("--near", metavar="MODEL", help="find near-duplicates by the embeddings of a model")
    option("--cosine", type=_cosine, default=0.98, metavar="C",
           help="similarity of near-duplicates (default: 0.98)")  # fmt: skip
    option("--device", default="auto", help="cpu, cuda, … (default: a GPU if there is one)")
    option("--verify", action="store_true",
           help="read all indexed images again")  # fmt: skip
    option("--trust", action="store_true",
           help="open a compiled model (AOTInductor) from elsewhere, which runs code")  # fmt: skip
    option("--runs", type=Path, default=Path("runs"), metavar="FOLDER",
           help="folder of indexes and decoded images (default: runs)")  # fmt: skip


def run_check(options: argparse.Namespace) -> int:
    """Check, print and write the files; return the exit status."""
    from ssdistill.data.checking import Checked
    from ssdistill.files import check_writable, write_atomically
    from ssdistill.terminal.console import say, show, tell

    settings = data_settings(options.words)
    for name in ("out", "json"):
        path = getattr(options, name)
        if path and path.is_dir():
            raise UserError(f"--{name} {path}: is a folder; pass a file name")
        if path:
            check_writable(path, f"--{name}")
    checked = Checked(settings, options.runs / "data" if options.verify else None)
    if options.near:
        _find_near(checked, settings, options)
    tables = [counts_table(checked), sizes_table(checked)]
    for table in tables:
        if table.rows:
            show(table.to_rich())
    for notice in checked.notices:
        tell(f"note: {notice}")
    if options.json:
        write_atomically(options.json, json.dumps(checked.facts(), indent=1) + "\n")
        say(f"json: {options.json}")
    if options.out:
        from ssdistill.report.contact_sheet import contact_sheet

        write_atomically(options.out, contact_sheet(checked, tables, settings.max_pixels))
        say(f"out: {options.out}")
    return 0


def _find_near(checked: "Checked", settings: "StoreSettings", options: argparse.Namespace) -> None:
    from ssdistill.evaluate.functions import as_device
    from ssdistill.evaluate.opening.encoders import open_encoder
    from ssdistill.label_free.near_duplicates import find_near

    opened = open_encoder(options.near, trust=options.trust)
    find_near(
        checked,
        opened.encoder,
        settings,
        options.runs / "data",
        image_size=opened.image_size or settings.image_size or checked.source.default_image_size,
        cosine=options.cosine,
        device=as_device(options.device),
    )


def counts_table(checked: "Checked") -> "Table":
    """Return how much was found of each kind, and the first of it."""
    from ssdistill.report.tables.table import Table

    found = {
        "unreadable": checked.unreadable,
        "changed": checked.changed,
        "constant": checked.constant,
        "unusual size": checked.odd_sizes,
        "other mode": checked.other_modes,
    }
    rows = [(name, f"{len(f)}", _named(f)) for name, f in found.items() if f is not None]
    for name, groups in (("duplicates", checked.duplicates), ("near-duplicates", checked.near)):
        if groups is not None:
            more = sum(map(len, groups)) - len(groups)
            several = "" if len(groups) == 1 else "s"
            first = f"{len(groups)} group{several}, first {_named(groups[0])}" if groups else ""
            rows.append((name, f"{more}", first))
    if checked.shared:
        rows.append(("in both splits", f"{checked.shared}", "groups of training and test images"))
    modes = ", ".join(f"{count} {name}" for name, count in checked.modes.items())
    splits = ", ".join(f"{len(part.facts_N)} {name}" for name, part in checked.parts.items())
    return Table(
        ("found", "images", "first of them"),
        tuple(rows),
        title="Check",
        caption=f"{checked.source.description}: {splits} images; modes: {modes or 'none'}. "
        "Duplicates are counted without the first of each group.",
        numeric=(False, True, False),
    )


def sizes_table(checked: "Checked") -> "Table":
    """Return the quantiles of the sizes."""
    from ssdistill.data.inspection import QUANTILES, quantiles
    from ssdistill.report.tables.table import Table

    found = quantiles(list(checked.parts.values()))
    header = ("size", *(f"{share:.0%}" for share in QUANTILES))
    header = tuple({"0%": "least", "50%": "median", "100%": "most"}.get(h, h) for h in header)
    rows = tuple((name, *(f"{value:.4g}" for value in values)) for name, values in found.items())
    return Table(
        header,
        rows,
        title="Sizes",
        caption="Quantiles, in pixels; aspect: longer side over shorter.",
    )


def _named(found: "Sequence[Finding]") -> str:
    from ssdistill.errors import shortened, shown

    first = [
        shown(finding.name) + (f" ({finding.detail})" if finding.detail else "")
        for finding in found[:FIRST]
    ]
    more = f" and {len(found) - FIRST} more" if len(found) > FIRST else ""
    return shortened(", ".join(first), 160) + more


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a similarity between 0 and 1")
    return value
