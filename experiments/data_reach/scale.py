"""Millions of images: what the index, the order and the boxes of a step take in time and memory.

    python experiments/data_reach/scale.py [--counts 1280000 100000000] [--out records.jsonl]

No image is needed: the index is a file of records, as indexing leaves it, of which only the parts
that the measured steps read are written; the rest is a hole in the file. Each count is measured in
a process of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ssdistill.data.checksums import block_checksums
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.image_index import FORMAT, META, RECORD, RECORDS, ImageIndex
from ssdistill.data.loader import Loader
from ssdistill.data.order import shuffled
from ssdistill.data.originals import Originals
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.view_plan import ViewPlan

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

BATCH, STEPS, SEED = 4096, 20, 7
PLAN = ViewPlan((ViewRecipe(scale=(0.08, 1.0)),) * 2, SEED, 224)


class Simulated(EncodedSplit):
    """A container that says how many images it has, and nothing else."""

    title = "simulated images"

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return str(i)

    def identity(self) -> str:
        return str(self.count)

    def read(self, i: int) -> bytes:
        raise AssertionError("no image is read here")

    def stamps(self) -> np.ndarray:
        return np.zeros(self.count, dtype=np.uint64)


def memory() -> tuple[int, int]:
    """Bytes of this process that are its own, and those of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) << 10 for key in ("RssAnon", "RssFile"))


def write_index(folder: Path, count: int, steps: list[int]) -> None:
    """Write an index in which the images of some steps have sizes of their own."""
    records_N = np.lib.format.open_memmap(folder / RECORDS, "w+", RECORD, (count,))
    for start in range(0, count, 1 << 20):
        records_N[start : start + (1 << 20)] = (0, 0, 375, 500)
    per_epoch = count // BATCH
    for step in steps:
        epoch, position = divmod(step, per_epoch)
        start = position * BATCH
        row_B = shuffled(np.arange(start, start + BATCH), count, SEED, epoch)
        records_N["height"][row_B] = 375 + row_B % 100
        records_N["width"][row_B] = 500 - row_B % 100
    records_N.flush()
    content = {"format": FORMAT, "reasons": {}, "checksums": block_checksums(folder / RECORDS)}
    (folder / META).write_text(json.dumps(content))


def draw(loader: Loader, originals: Originals, step: int) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Rows and the boxes' left edges of a step: all that it needs before an image is read."""
    epoch, position = divmod(step, loader.steps_per_epoch)
    start = position * BATCH
    row_B = loader._rows_at(epoch, np.arange(start, start + BATCH))
    index_B = torch.from_numpy(row_B)
    sizes = [torch.from_numpy(side_B) for side_B in originals.sizes(row_B)]
    return row_B, [PLAN.draw(view, epoch, index_B, *sizes).left_B for view in PLAN.plain]


def opened(folder: Path, count: int) -> tuple[Originals, Loader]:
    """The images and their loader, as a training has them."""
    raw = Simulated(count)
    index = ImageIndex(raw, folder)
    options = {"window": None, "fingerprint": "", "max_bad": 0.05}
    originals = Originals(None, "train", raw, index, 224, **options)
    return originals, Loader(originals, BATCH, SEED, 10**9)


def measure(pipe: Connection, folder: Path, count: int) -> None:
    """Send one row of the table."""
    per_epoch = count // BATCH
    steps = np.linspace(0, 3 * per_epoch, STEPS + 1, dtype=int)[1:].tolist()
    write_index(folder, count, steps)
    draw(*_tiny(folder))  # torch starts its threads
    own, mapped = memory()
    seconds, (originals, loader) = timed(lambda: opened(folder, count))
    row = {"images": f"{count:,}", "index on disk, MB": count * RECORD.itemsize / 1e6}
    row["opening, s"] = seconds
    first = [timed(lambda step=step: draw(loader, originals, step)) for step in steps]
    row["a step, ms"] = median(seconds for seconds, _ in first) * 1e3
    row["worst, ms"] = max(seconds for seconds, _ in first) * 1e3
    now, now_mapped = memory()
    row["own memory, bytes/image"] = max(0, now - own) / count
    row["mapped pages, bytes/image"] = max(0, now_mapped - mapped) / count
    middle = STEPS // 2
    resumed, again = timed(lambda: draw(*opened(folder, count)[::-1], steps[middle]))
    expected = first[middle][1]
    equal = np.array_equal(again[0], expected[0]) and all(map(torch.equal, again[1], expected[1]))
    row["resume in mid-epoch, s"] = resumed
    row["same rows and boxes"] = "yes" if equal else "no"
    row["fingerprint, s"], _ = timed(originals.index.content)
    pipe.send(row)


def _tiny(folder: Path) -> tuple[Loader, Originals, int]:
    place = folder / "tiny"
    place.mkdir()
    write_index(place, 2 * BATCH, [0])
    originals, loader = opened(place, 2 * BATCH)
    return loader, originals, 0


def timed(work: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1_281_167, 100_000_000])
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    rows = []
    for count in args.counts:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = get_context("spawn").Pipe()
            work = get_context("spawn").Process(target=measure, args=(theirs, Path(folder), count))
            work.start()
            theirs.close()
            rows.append(ours.recv())
            work.join()
    note = (
        f"order, sizes and two boxes of each of {BATCH} images a step, {STEPS} steps over three "
        "epochs; mapped pages are the kernel's to take back"
    )
    publish(args.out, "scale", "Large numbers of images, before any is read", note=note, rows=rows)


if __name__ == "__main__":
    main()
