"""The command `ssdistill embed`: parsing and printing only."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ssdistill.commands.data.words import SOURCE
from ssdistill.commands.probe.command import image_size
from ssdistill.errors import UserError

if TYPE_CHECKING:
    from ssdistill.label_free.embedding.embedded import Embedded

SUMMARY = "write the embeddings of images to a file"
DESCRIPTION = f"""\
Embed all images of a source with an encoder, and write one row for each image that can be read.
Labels are never read. Rows are written as they come, in bounded memory; run the same command to go
on after an interruption, with the same result to the byte.

MODEL is what `ssdistill probe` opens: the folder of a saved model or of a finished stage, a
model.onnx, timm:NAME[@FILE], torchvision:NAME[@FILE] or checkpoint:NAME@FILE.

DATA is {SOURCE}.

FILE ends in
  .npy           (N, D); names are in FILE.names.txt, one line for each row
  .npz           embeddings, names, splits
  .parquet       columns name, split, embedding
  .csv           columns name, split, 0, 1, ...
  .safetensors   embeddings; names as for .npy
"""
EPILOG = """\
examples:
  ssdistill embed runs/student/s0 photos/ --out photos.parquet
  ssdistill embed timm:resnet18 photos.csv --out photos.npy --normalize --topk 10
  ssdistill embed student_int8/ kind=tar path='shards/{000..012}.tar' --out shards.safetensors
  ssdistill embed timm:vit_small_patch16_224.dino cifar10.npz --split test --layer patch \\
      --half --out patches.npy
"""


def add_embed(commands: argparse._SubParsersAction) -> None:
    """Add the `embed` command to the parser."""
    parser = commands.add_parser(
        "embed",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="ssdistill embed MODEL DATA [key=value ...] --out FILE [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run_embed)
    add = parser.add_argument
    add("words", nargs="*", metavar="MODEL DATA | key=value", help="encoder, images, settings")
    add("--out", type=Path, metavar="FILE", help="file to write; its ending names the format")
    add("--layer", default="embedding", metavar="LAYER",
        help="embedding (pooled), projection (of the pretraining projector) or patch (tokens, "
        "or positions of the last map) (default: embedding)")  # fmt: skip
    add("--split", default="all", metavar="SPLIT",
        help="train, test or all, training images first (default: all)")  # fmt: skip
    add("--normalize", action="store_true", help="divide each vector by its length (L2)")
    add("--half", action="store_true", help="write float16 instead of float32")
    add("--topk", type=int, metavar="K",
        help="also write the K nearest neighbors of each row by cosine similarity, to "
        "STEM.neighbors.npz: indices, similarities")  # fmt: skip
    add("--force", action="store_true",
        help="replace a file that exists, and what another command left unfinished")  # fmt: skip
    add("--batch-size", type=int, metavar="N",
        help="images encoded at a time (default: 64 on a CPU, 512 elsewhere)")  # fmt: skip
    add("--image-size", type=image_size, metavar="PIXELS",
        help="image size in pixels, 224 or 256x128 (default: the encoder's own)")  # fmt: skip
    for name in ("mean", "std"):
        add(f"--{name}", nargs="+", type=float, metavar="X",
            help="normalization statistics of a bare .onnx file, one for each channel")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, … (default: a GPU if there is one)")
    add("--precision", default="fp32", choices=("fp32", "bf16"),
        help="precision of the encoding (default: fp32)")  # fmt: skip
    add("--runs", type=Path, default=Path("runs"), metavar="FOLDER",
        help="cache decoded images in FOLDER/data (default: runs)")  # fmt: skip
    add("--trust", action="store_true",
        help="open a compiled model (AOTInductor) from elsewhere, which runs code")  # fmt: skip


def run_embed(options: argparse.Namespace) -> int:
    """Embed, and print what was written; return the exit status."""
    from ssdistill.chain.processes import refuse_several_processes
    from ssdistill.commands.data.words import data_settings
    from ssdistill.evaluate.embedding import embed
    from ssdistill.label_free.embedding.formats import format_of
    from ssdistill.label_free.embedding.layers import check_layer
    from ssdistill.terminal.console import say, tell

    refuse_several_processes()
    if not options.words:
        raise UserError("embed: a model is required: a folder, an .onnx file or timm:NAME")
    model, *data = options.words
    if not data:
        raise UserError(f"embed {model}: name the images, too: {SOURCE}")
    if options.out is None:
        raise UserError("embed: --out FILE is required, such as --out photos.npy")
    check_layer(options.layer)
    format_of(options.out, options.layer)
    names = (
        "layer", "split", "normalize", "half", "topk", "force", "batch_size", "image_size", "mean",
        "std", "device", "precision", "trust",
    )  # fmt: skip
    settings = {name: getattr(options, name) for name in names}
    written = embed(model, data_settings(data), options.out, root=options.runs, **settings)
    for line in _lines(written):
        say(line)
    for notice in written.notices:
        tell(f"note: {notice}")
    return 0


def _lines(written: "Embedded") -> list[str]:
    from ssdistill.commands.data.pack import bytes_text
    from ssdistill.errors import shown

    lines = []
    if skipped := written.skipped:
        name, reason = skipped[0]
        lines.append(
            f"skipped: {len(skipped)} {'image' if len(skipped) == 1 else 'images'} that cannot be "
            f"read, first {shown(name)} ({reason})"
        )
    lines += [f"names: {written.names_path}"] if written.names_path else []
    lines += [f"neighbors: {written.neighbors_path}"] if written.neighbors_path else []
    rows, *size = written.shape
    numbers = f"{' x '.join(map(str, size))} {written.dtype}"
    lines.append(
        f"{written.path}: {rows} {'row' if rows == 1 else 'rows'} of {numbers}, "
        f"{bytes_text(written.bytes)}, {written.seconds:.1f} s"
    )
    return lines
