"""Views per second: batched views against per-image pipelines in two loader workers.

    python experiments/benchmarks/augmentation.py [--npz images.npz] [--out record.jsonl]

All three make two SimCLR views (crop, flip, jitter, greyscale, blur with probability 0.5, mean and
deviation removed) of every 32x32 image in a uint8 array. They take turns, so that a load on the
machine falls on all; medians over the rounds are compared.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import lightly
import numpy as np
import torch
import torchvision
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ssdistill.data.views import RECIPES, make_view

BATCH = 256
SIZE = 32
OURS = "ssdistill"


class TwoViews(Dataset):
    """Two views of each image of a uint8 array, one image at a time."""

    def __init__(self, images_NHWC: np.ndarray, make: Callable[[np.ndarray], list]):
        self.images_NHWC = images_NHWC
        self.make = make

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, index: int) -> list:
        return self.make(self.images_NHWC[index])


class FromPil:
    """lightly's transform, which works on PIL images."""

    def __init__(self):
        self.transform = SimCLRTransform(input_size=SIZE)

    def __call__(self, image_HWC: np.ndarray) -> list:
        return self.transform(Image.fromarray(image_HWC))


class FromTensor:
    """The same recipe from torchvision's parts, on float tensors."""

    def __init__(self):
        recipe = RECIPES["simclr"]
        strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        self.transform = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomResizedCrop(SIZE, recipe.scale, recipe.ratio, antialias=True),
                v2.RandomHorizontalFlip(recipe.flip),
                v2.RandomApply([v2.ColorJitter(*strengths)], recipe.jitter),
                v2.RandomGrayscale(recipe.grayscale),
                v2.RandomApply([v2.GaussianBlur(3, recipe.blur_sigma)], recipe.blur),
                v2.Normalize(**IMAGENET_NORMALIZE),
            ]
        )

    def __call__(self, image_HWC: np.ndarray) -> list:
        image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
        return [self.transform(image_CHW) for _ in range(2)]


def natural_images(count: int) -> np.ndarray:
    """Random images with the 1/f spectrum of photographs, uint8 NHWC."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    frequency[0, 0] = 1 / SIZE
    noise = np.fft.rfft2(rng.standard_normal((count, 3, SIZE, SIZE))) / frequency
    x = np.fft.irfft2(noise, s=(SIZE, SIZE))
    x = x / x.std(axis=(2, 3), keepdims=True) * 0.22 + 0.47
    return (x.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def load_images(path: Path | None, count: int) -> np.ndarray:
    """The first (N, 32, 32, 3) uint8 array of an ``.npz``, or generated images."""
    if path is None:
        return natural_images(count)
    with np.load(path) as file:
        for name in file.files:
            array = file[name]
            if array.dtype == np.uint8 and array.shape[1:] == (SIZE, SIZE, 3):
                return np.ascontiguousarray(array[:count])
    raise SystemExit(f"{path} holds no uint8 array of shape (N, {SIZE}, {SIZE}, 3)")


def batched(images_NHWC: np.ndarray) -> Callable[[], None]:
    """A pass over the images in shuffled batches with this project's views."""
    images = torch.from_numpy(images_NHWC)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET_NORMALIZE.values())
    epoch = iter(range(1 << 30))

    def run() -> None:
        now = next(epoch)
        for index_B in torch.randperm(len(images)).split(BATCH):
            for view in range(2):
                key = {"seed": 0, "epoch": now, "index_B": index_B, "view": view}
                x_BCHW = make_view(images[index_B], RECIPES["simclr"], **key, size=SIZE)
                x_BCHW.sub_(mean).div_(std)

    return run


def loaded(images_NHWC: np.ndarray, make: Callable[[np.ndarray], list]) -> Callable[[], None]:
    """A pass over the images with a per-image transform in two worker processes."""
    loader = DataLoader(
        TwoViews(images_NHWC, make), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def measure(runs: dict[str, Callable[[], None]], rounds: int, views: int) -> dict[str, list[float]]:
    """Views per second of every pipeline in every round; one unmeasured round goes first."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                rates[name].append(views / (time.perf_counter() - start))
    return rates


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path, help="take 32x32 uint8 images from here")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10, help="batches of 256 images a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    images_NHWC = load_images(args.npz, args.batches * BATCH)
    runs = {
        "lightly, 2 workers": loaded(images_NHWC, FromPil()),
        "torchvision v2, 2 workers": loaded(images_NHWC, FromTensor()),
        OURS: batched(images_NHWC),
    }
    rates = measure(runs, args.rounds, 2 * len(images_NHWC))
    medians = {name: median(values) for name, values in rates.items()}
    ratios = {name: medians[OURS] / value for name, value in medians.items() if name != OURS}

    table = Table("pipeline", "views/s", "lowest", "highest", f"{OURS} is faster by")
    for name, values in rates.items():
        numbers = (f"{v:.0f}" for v in (medians[name], min(values), max(values)))
        table.add_row(name, *numbers, f"{ratios[name]:.1f}x" if name in ratios else "")
    Console().print(table)
    record = {
        "name": "augmentation",
        "views_per_s": medians,
        "ratios": ratios,
        "rounds": rates,
        "images": len(images_NHWC),
        "batch": BATCH,
        "threads": args.threads,
        "cpu": cpu_model(),
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, lightly)},
    }
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
