"""The command `ssdistill probe`: parsing and printing only."""

import argparse
from pathlib import Path

from ssdistill.errors import UserError

SUMMARY = "evaluate and compare encoders on labeled images"
DESCRIPTION = """\
Evaluate encoders on labeled images. No training config is required, and only the probes are
trained. Several models are shown side by side, each compared with the first on the same test
images. Without labels, label-free metrics are shown.

PATH is one of
  a folder                 of a saved model, or of a finished stage of a run: PyTorch, compressed,
                           or a file for another runtime
  model.onnx               from anywhere: images (B, C, H, W) in, embeddings (B, D) out
  timm:NAME[@FILE]         timm's network at its published weights, or at those in a file;
                           likewise torchvision:NAME[@FILE] and checkpoint:NAME@FILE

Settings of the data and of protocols are written data.KEY=VALUE and PROTOCOL.KEY=VALUE; see
`ssdistill list sources` and `ssdistill list protocols`.
"""
EPILOG = """\
examples:
  ssdistill probe runs/student/s0 --data digits
  ssdistill probe teacher/ student/ student_int8/ --data cifar10.npz --page probe.html
  ssdistill probe encoder.onnx --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --data photos/
  ssdistill probe timm:resnet18 timm:vit_small_patch14_dinov2.lvd142m@dinov2_vits14.pth \\
      --data npz data.path=flowers.npz --protocols linear,knn knn.k=10 --json results.json
"""


def add_probe(commands: argparse._SubParsersAction) -> None:
    """Add the `probe` command to the parser."""
    parser = commands.add_parser(
        "probe",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="ssdistill probe [options] PATH [PATH ...] --data DATA [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run_probe)
    add = parser.add_argument
    add("words", nargs="*", metavar="PATH | key=value", help="models to evaluate, and settings")
    add("--data", metavar="DATA", help="a data source kind, an .npz file or an image folder")
    add("--protocols", metavar="A,B", help="linear, knn, … (default: linear, knn, low_shot)")
    add("--margin", type=float, default=1.0, metavar="POINTS",
        help="equivalence margin in points of accuracy (default: 1.0)")  # fmt: skip
    add("--image-size", type=image_size, metavar="PIXELS",
        help="image size in pixels, 224 or 256x128 (default: each encoder's own)")  # fmt: skip
    for name in ("mean", "std"):
        add(f"--{name}", nargs=3, type=float, metavar=("R", "G", "B"),
            help="normalization statistics of a bare .onnx file")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, … (default: a GPU if there is one)")
    add(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16"),
        help="precision of the encoding (default: fp32)",
    )
    add(
        "--map",
        default="pca",
        choices=("pca", "umap"),
        help="projection of embeddings on the page (default: pca)",
    )
    add("--runs", "--cache", type=Path, default=Path("runs"), metavar="FOLDER",
        help="cache decoded images in FOLDER/data (default: runs)")  # fmt: skip
    add("--trust", action="store_true",
        help="open compiled models (AOTInductor) from other machines, which run code")  # fmt: skip
    for name in ("json", "csv", "markdown", "page"):
        what = "all results" if name == "json" else "all metrics" if name == "csv" else "tables"
        what = "tables and charts (one HTML file)" if name == "page" else what
        add(f"--{name}", type=Path, metavar="FILE", help=f"write {what} to FILE")


def run_probe(options: argparse.Namespace) -> int:
    """Evaluate, print and write the files; return the exit status."""
    from ssdistill.chain.processes import refuse_several_processes
    from ssdistill.commands.probe.arguments import parse_words
    from ssdistill.commands.probe.tables import tables
    from ssdistill.evaluate.comparing.run import probe
    from ssdistill.label_free.projection import check_method
    from ssdistill.terminal.console import show, tell

    refuse_several_processes()
    paths = [word for word in options.words if not _is_setting(word)]
    settings = parse_words(word for word in options.words if _is_setting(word))
    of_data = settings.pop("data", {})
    data = options.data or of_data.get("kind")
    if not paths:
        raise UserError("probe: a model is required; name a folder, an .onnx file or timm:NAME")
    if not data:
        raise UserError("probe: --data is required; name a source kind, FILE.npz or FOLDER")
    check_method(options.map)
    _check_files(options)
    probed = probe(
        paths,
        data,
        [name for name in options.protocols.split(",") if name] if options.protocols else None,
        settings=settings,
        data_settings=of_data,
        image_size=options.image_size,
        mean=options.mean,
        std=options.std,
        margin=options.margin,
        device=options.device,
        precision=options.precision,
        root=options.runs,
        trust=options.trust,
    )
    for table in tables(probed):
        show(table.to_rich())
    for notice in probed.notices:
        tell(f"note: {notice}")
    _write(probed, options)
    return 0


def _write(found, options: argparse.Namespace) -> None:
    from ssdistill.commands.probe.files import to_csv, to_json, to_markdown
    from ssdistill.commands.probe.page import render
    from ssdistill.files import write_atomically
    from ssdistill.terminal.console import say

    writers = {
        "json": to_json,
        "csv": to_csv,
        "markdown": to_markdown,
        "page": lambda probed: render(probed, options.map),
    }
    for name, writer in writers.items():
        if path := getattr(options, name):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, writer(found))
            say(f"{name}: {path}")


def _check_files(options: argparse.Namespace) -> None:
    """Refuse output files that cannot be written, before the probe starts."""
    from ssdistill.files import check_writable

    for name in ("json", "csv", "markdown", "page"):
        path = getattr(options, name)
        if path and path.is_dir():
            raise UserError(f"--{name} {path}: is a folder; pass a file name")
        if path:
            check_writable(path, f"--{name}")


def _is_setting(word: str) -> bool:
    from ssdistill.evaluate.opening.named_encoders import named_encoder

    return "=" in word and not Path(word).exists() and named_encoder(word) is None


def image_size(text: str) -> int | tuple[int, int]:
    """Parse ``224`` or ``256x128``."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text} is not an image size in pixels; write a whole number, or HEIGHTxWIDTH"
        )
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
