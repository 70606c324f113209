"""Images per second: views cut from originals against torchvision, lightly and WebDataset.

    python experiments/data_reach/rates.py FOLDER [--out records.jsonl]

All of them make two views of 224 pixels of JPEG files, with crop and flip alone, or with SimCLR's
colors as well, and give batches of float32 in [0, 1]. The others have two worker processes, as
their documentation has it; ssdistill reads in two threads. "Decoding and resizing alone" is what
none of them can do without, in two threads, with nothing around it. They take turns of one pass
each; ratios are taken within a round.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import count, cycle, islice
from multiprocessing import active_children
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from ssdistill.data.cutting import Box, cut
from ssdistill.data.loader import Loader
from ssdistill.data.opening import open_originals
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.data.thread_pool import thread_pool
from ssdistill.data.view_plan import ViewPlan
from ssdistill.train.memory import keep_freed_memory

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import interleave, publish, quiet, ratio

SIZE, BATCH, SHARDS = 224, 64, 4
OURS, KERNELS = "ssdistill", "decoding and resizing alone"
SIMCLR = RECIPES["simclr"].model_copy(update={"scale": (0.08, 1.0)})
GEOMETRY = ViewRecipe(scale=SIMCLR.scale)
Turn = Callable[[], Iterable]


class Twice:
    """Two draws of a transform."""

    def __init__(self, transform: Callable):
        self.transform = transform

    def __call__(self, image: object) -> list[torch.Tensor]:
        return [self.transform(image) for _ in range(2)]


def torchvision_views(recipe: ViewRecipe) -> Twice:
    """A recipe by torchvision v2, on PIL images as ``ImageFolder`` gives them."""
    steps = [
        v2.RandomResizedCrop(SIZE, recipe.scale, recipe.ratio, antialias=True),
        v2.RandomHorizontalFlip(recipe.flip),
    ]
    if recipe.jitter:
        strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        steps += [
            v2.RandomApply([v2.ColorJitter(*strengths)], recipe.jitter),
            v2.RandomGrayscale(recipe.grayscale),
            v2.RandomApply([v2.GaussianBlur(23, recipe.blur_sigma)], recipe.blur),
        ]
    return Twice(v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]))


def of_torchvision(folder: Path, recipe: ViewRecipe, workers: int) -> Turn:
    """``ImageFolder`` and a ``DataLoader``."""
    return _loaded(ImageFolder(str(folder), torchvision_views(recipe)), workers, shuffle=True)


def of_lightly(folder: Path, recipe: ViewRecipe, workers: int) -> Turn:
    """lightly's data set and its SimCLR transform; without colors, their probabilities are 0."""
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(
        input_size=SIZE,
        min_scale=recipe.scale[0],
        cj_prob=recipe.jitter,
        random_gray_scale=recipe.grayscale,
        gaussian_blur=recipe.blur,
        normalize=None,
    )
    return _loaded(LightlyDataset(str(folder), transform=transform), workers, shuffle=True)


def of_webdataset(folder: Path, recipe: ViewRecipe, workers: int) -> Turn:
    """The same files in tar shards, read in their order, shuffled in a buffer of 1000."""
    import webdataset

    dataset = webdataset.WebDataset(_shards(folder), shardshuffle=SHARDS).shuffle(1000)
    dataset = dataset.decode("pil").to_tuple("jpg").map_tuple(torchvision_views(recipe))
    return _loaded(dataset, workers)


def _shards(folder: Path) -> list[str]:
    """Write the images as tar files beside ``folder``, once."""
    paths = [str(folder.with_name(f"{number}.tar")) for number in range(SHARDS)]
    names = sorted(folder.rglob("*.jpg"))
    for number, path in enumerate(paths):
        if Path(path).exists():
            continue
        with tarfile.open(path, "w") as tar:
            for name in names[number::SHARDS]:
                content = name.read_bytes()
                entry = tarfile.TarInfo(name.name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return paths


def _loaded(dataset: object, workers: int, **more: bool) -> Turn:
    loader = DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=True, **more)
    return lambda: loader


def of_ssdistill(folder: Path, recipe: ViewRecipe, workers: int) -> Turn:
    """The loader that every stage trains with, and its views."""
    source = Folder(path=str(folder), test_fraction=0)
    settings = StoreSettings(pixels="original")
    originals = open_originals(source, "train", settings, SIZE, folder.parent / "index", workers)
    plan, steps = ViewPlan((recipe, recipe), 0, SIZE), len(originals) // BATCH
    epochs = count()

    def run() -> Iterable:
        start = next(epochs) * steps
        loader = Loader(originals, BATCH, 0, start + steps, ahead=2)
        for batch in loader.iterate(start, plan):
            yield plan.views(batch)

    return run


def of_kernels_alone(folder: Path, recipe: ViewRecipe, workers: int) -> Turn:
    """Decode and resize, in threads, to uint8: no reading, no floats, no colors, no batches."""
    contents = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    pool = thread_pool(workers, "alone")

    def work(content: bytes) -> None:
        image_CHW = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        for _ in range(2):
            box = v2.RandomResizedCrop.get_params(image_CHW, [*recipe.scale], [*recipe.ratio])
            cut(image_CHW, Box(*box, SIZE))

    def run() -> Iterable:
        pool.map(work, contents)
        return ()

    return run


CONTESTANTS = {
    OURS: of_ssdistill,
    KERNELS: of_kernels_alone,
    "torchvision": of_torchvision,
    "lightly": of_lightly,
    "webdataset": of_webdataset,
}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its workers so far."""
    own = os.times()
    ticks = 0
    for child in active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return own.user + own.system + ticks / os.sysconf("SC_CLK_TCK")


def timed(run: Turn, images: int, costs: list[float]) -> Callable[[], float]:
    """A pass, as images per second; its images per CPU second go to ``costs``."""

    def turn() -> float:
        start, cpu = time.perf_counter(), cpu_seconds()
        for _ in run():
            pass
        seconds = time.perf_counter() - start
        costs.append(images / max(cpu_seconds() - cpu, 1e-9))
        return images / seconds

    return turn


def linked(folder: Path, root: Path, number: int) -> Path:
    """A folder of one class with ``number`` links to the JPEG files of ``folder``, repeated."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise SystemExit(f"{folder} has no JPEG files; name a folder of photographs")
    (root / "images" / "class").mkdir(parents=True)
    for row, path in enumerate(islice(cycle(found), number)):
        (root / "images" / "class" / f"{row:06d}.jpg").symlink_to(path.resolve())
    return root / "images"


def compare(folder: Path, recipe: ViewRecipe, args: argparse.Namespace) -> tuple[dict, str]:
    """Return the ratios of wall time and of CPU time, and a note with the rates."""
    turns, costs, absent = {}, {}, []
    for name, make in CONTESTANTS.items():
        try:
            run = make(folder, recipe, args.workers)
        except ModuleNotFoundError as error:
            absent.append(f"{error.name} is not installed")
            continue
        costs[name] = []
        turns[name] = timed(run, args.images, costs[name])
    rates = interleave(turns, args.rounds, "rates")
    costs = {name: values[1:] for name, values in costs.items()}
    ratios = {}
    others = [name for name in rates if name not in (OURS, KERNELS)]
    for first, second in [*((OURS, name) for name in [*others, KERNELS]),
                          *((KERNELS, name) for name in others)]:  # fmt: skip
        ratios[f"{first} / {second}"] = ratio(rates[first], rates[second])
        ratios[f"{first} / {second}, per CPU second"] = ratio(costs[first], costs[second])
    shown = [
        f"{name} {median(rates[name]):.0f} (per CPU second {median(costs[name]):.0f})"
        for name in rates
    ]
    return ratios, ", ".join([*shown, *absent])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG files of the size of ImageNet's")
    parser.add_argument("--images", type=int, default=512, help="in a pass; files are repeated")
    parser.add_argument("--rounds", type=int, default=5, help="turns of everything compared")
    parser.add_argument("--workers", type=int, default=2, help="processes, or threads of ssdistill")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="append the records, one JSON line each")
    args = parser.parse_args()
    args.images -= args.images % BATCH
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as in every training; the others' workers inherit it
    with tempfile.TemporaryDirectory() as root, quiet():
        folder = linked(args.folder, Path(root), args.images)
        for name, title, recipe in (
            ("views", "crop and flip", GEOMETRY),
            ("views_simclr", "crop, flip and SimCLR's colors", SIMCLR),
        ):
            ratios, rates = compare(folder, recipe, args)
            note = (
                f"{args.images} JPEG files, batch {BATCH}, {args.workers} workers or threads, "
                f"medians in images/s: {rates}"
            )
            publish(args.out, name, f"Two views of {SIZE} pixels: {title}", ratios, note)


if __name__ == "__main__":
    main()
