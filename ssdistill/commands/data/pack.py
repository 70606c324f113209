"""The command `ssdistill data pack`: parsing and printing only."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ssdistill.commands.data.words import SOURCE

if TYPE_CHECKING:
    from ssdistill.data.packing.writer import Packed, Packing

SUMMARY = "write images as tar archives (WebDataset's shards)"
DESCRIPTION = """\
Write a source's images as tar archives that data.kind=tar and WebDataset read: the original
files, or JPEGs whose shorter side has --short-side pixels, with the loss of views in dB.
Names, order and splits are unchanged. Run the same command to resume after an interruption;
finished archives are kept, and the resulting bytes are the same.

Checksums are in checksums.sha256, in the format of sha256sum.
"""
EPILOG = """\
examples:
  ssdistill data pack photos/ --to shards/
  ssdistill data pack photos/ --to shards/ --short-side 256 --quality 90 --labels
  ssdistill data pack kind=npz path=cifar10.npz --to shards/
  ssdistill data pack mine.yaml --to shards/ --verify
"""


def add(subcommands: argparse._SubParsersAction) -> None:
    """Add `pack` to the subcommands."""
    parser = subcommands.add_parser(
        "pack",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="ssdistill data pack SOURCE [key=value ...] --to FOLDER [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    option = parser.add_argument
    option("words", nargs="*", metavar="SOURCE | key=value", help=SOURCE)
    option("--to", type=Path, required=True, metavar="FOLDER", help="folder of the archives")
    option("--short-side", type=_positive, metavar="PIXELS",
        help="shrink larger images to this (default: keep the original files)")  # fmt: skip
    option("--quality", type=_quality, metavar="Q",
        help="JPEG quality of images made smaller, 1 to 100 (default: 90)")  # fmt: skip
    option(
        "--labels", dest="with_labels", action="store_true", help="write each image's class as .cls"
    )
    option("--shard-images", type=_positive, default=2000, metavar="N",
        help="most images in an archive (default: 2000)")  # fmt: skip
    option("--verify", action="store_true",
        help="read the archives again and compare them with their checksums")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Pack, verify and print; return the exit status."""
    from ssdistill.commands.data.words import data_settings
    from ssdistill.data.decode import pixel_limit
    from ssdistill.data.opening import open_source
    from ssdistill.data.packing.checksums import verify
    from ssdistill.data.packing.writer import Packing, pack
    from ssdistill.errors import UserError
    from ssdistill.files import user_path
    from ssdistill.terminal.console import say

    if options.quality is not None and options.short_side is None:
        raise UserError("--quality applies to images made smaller; add --short-side PIXELS")
    settings = data_settings(options.words)
    source, folder = open_source(settings), user_path(options.to)
    packing = Packing(
        options.short_side, options.quality or 90, options.with_labels, options.shard_images
    )
    with pixel_limit(settings.max_pixels):
        packed = pack(source, folder, packing, settings.max_bad)
    lines = _lines(packed, packing, folder, source.has_test)
    if settings.channels is not None:
        lines[-1] += f" 'data.channels={json.dumps(settings.channels)}'"
    for line in lines:
        say(line)
    if options.verify:
        say(f"verified: {_archives(verify(folder))} as the checksums say")
    return 0


def _lines(packed: "Packed", packing: "Packing", folder: Path, has_test: bool) -> list[str]:
    from ssdistill.data.packing.checksums import CHECKSUMS
    from ssdistill.errors import shown

    lines = []
    for split in ("train", "test"):
        shards = [s for name, s in packed.shards.items() if name.startswith(f"{split}-")]
        if not shards:
            continue
        images, size = sum(s.images for s in shards), sum(s.bytes for s in shards)
        before = sum(s.original_bytes for s in shards)
        line = f"{split}: {images} images in {_archives(len(shards))}, {bytes_text(size)}"
        line += f" (images before: {bytes_text(before)})"
        if packing.short_side is not None and (kept := sum(s.kept for s in shards)):
            line += f"; {kept} kept as they were (not larger, or of more than 8 bits)"
        lines.append(line)
        if left_out := [entry for s in shards for entry in s.left_out]:
            name, reason = left_out[0]
            lines.append(f"{split}: {len(left_out)} skipped, first {shown(name)} ({reason})")
    if packed.num_new < len(packed.shards):
        lines.append(f"{_archives(len(packed.shards) - packed.num_new)} written before")
    if packed.loss is not None:
        loss = packed.loss
        lines.append(
            f"loss: views of {loss.view} pixels from {loss.num_images} images equal those of the "
            f"originals to {loss.median:.1f} dB (median), {loss.worst:.1f} dB (worst 5 %)"
        )
    more = "" if has_test else " data.test_fraction=0"
    lines.append(f"checksums: {folder / CHECKSUMS}")
    lines.append(f"to read them: data.kind=tar data.path={folder}{more}")
    return lines


def _archives(count: int) -> str:
    return f"{count} {'archive' if count == 1 else 'archives'}"


def bytes_text(count: int) -> str:
    """Return ``1.9 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a quality from 1 to 100")
    return int(text)
