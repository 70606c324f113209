"""Images of other channels and depths, through the whole chain.

    python experiments/data_reach/bands.py photographs/ [--out records.jsonl] [--runs FOLDER]

``photographs/`` has ``train/<class>/`` and ``test/<class>/`` of color images. Two sets are made of
them: TIFFs of five bands of 16 bits (red, green, blue, and two that are computed from them and
span a fraction of the range, as bands of a sensor do), and gray PNGs of 16 bits. A short run
pretrains, distills, prunes, quantizes and probes on each, as originals and as stored images, and on
images that are not square.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import ssdistill
from ssdistill.data.decode import read_image

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

FULL = 65535
SHORT = (
    "pretrain.steps=60",
    "pretrain.batch_size=64",
    "distill.steps=60",
    "distill.batch_size=64",
    "compress=[{kind: prune, ratio: 0.5, round_to: 4}, {kind: quantize}]",
    "evaluate.pixels=false",
)
NAMES = "{red: 0, green: 1, blue: 2, infrared: 3, texture: 4}"


def five_bands(image_HWC: np.ndarray) -> np.ndarray:
    """(H, W, 5) uint16: colors, and two bands that use an eighth of the range."""
    color_HWC = image_HWC.astype(np.float64) / 255
    infrared_HW = color_HWC @ (0.2, 0.9, -0.1)
    texture_HW = np.abs(np.gradient(color_HWC.mean(2))).sum(0)
    low_HW2 = np.stack([infrared_HW, texture_HW], axis=2).clip(0, 1) / 8
    return (np.concatenate([color_HWC, low_HW2], axis=2) * FULL).round().astype(np.uint16)


def write_tiff(image_HWC: np.ndarray, to: Path) -> None:
    import tifffile

    tifffile.imwrite(to.with_suffix(".tif"), five_bands(image_HWC), planarconfig="contig")


def write_png(image_HWC: np.ndarray, to: Path) -> None:
    """Gray in the lower quarter of 16 bits."""
    gray_HW = image_HWC.astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    Image.fromarray((gray_HW * FULL / 4).round().astype(np.uint16)).save(to.with_suffix(".png"))


def converted(folder: Path, to: Path, write: Callable[[np.ndarray, Path], None]) -> Path:
    for path in sorted(folder.glob("*/*/*")):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(read_image(path), target)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with train/<class>/ and test/<class>/")
    parser.add_argument("--runs", type=Path, help="where reports stay")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bands = converted(args.folder, Path(scratch) / "bands", write_tiff)
        gray = converted(args.folder, Path(scratch) / "gray", write_png)
        rgb = args.folder.resolve()
        for name, settings in {
            "8-bit color": {"path": rgb, "image_size": 32},
            "five bands of 16 bits": {"path": bands, "channels": NAMES, "image_size": 32},
            "two of five bands": {"path": bands, "channels": "[3, 4]", "image_size": 32},
            "gray of 16 bits": {"path": gray, "channels": "[0]", "image_size": 32},
            "five bands, 48x24": {
                "path": bands, "channels": NAMES, "image_size": "[48, 24]", "resize": "squash",
            },
        }.items():  # fmt: skip
            for pixels in ("stored", "original"):
                root = (args.runs or Path(scratch) / "runs") / f"{name}-{pixels}".replace(" ", "-")
                began = time.perf_counter()
                report = ssdistill.run(
                    "quickstart",
                    "data.kind=folder",
                    *(f"data.{key}={value}" for key, value in settings.items()),
                    f"data.pixels={pixels}",
                    *SHORT,
                    root=root,
                )
                seconds = time.perf_counter() - began
                top1 = {r["model"]: r["metrics"].get("probe/linear/top1") for r in report.records}
                row = {"images": name, "pixels": pixels}
                row |= {m: top1[m] for m in ("untrained", "teacher", "distilled", "int8")}
                rows.append(row | {"seconds": seconds})
                print(rows[-1], flush=True)
    note = "linear probe top-1 accuracy, %; 60 steps of each training: one seed, to see it work"
    publish(args.out, "bands", "Images of other channels and depths", note=note, rows=rows)


if __name__ == "__main__":
    main()
