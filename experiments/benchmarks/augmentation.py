"""Views per second: batched views against per-image pipelines in two loader workers.

    python experiments/benchmarks/augmentation.py [--npz images.npz] [--out records.jsonl]

All three make two SimCLR views (crop, flip, jitter, grayscale, blur with probability 0.5, mean and
deviation removed) of every 32x32 image in a uint8 array. They take turns of one pass each; ratios
are taken within a round.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from measuring import SIZE, arguments, interleave, load_images, publish, ratio
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ssdistill.data.recipes import RECIPES
from ssdistill.data.views import make_view

BATCH = 256
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


def timed(run: Callable[[], None], views: int) -> Callable[[], float]:
    """A pass, as views per second."""

    def turn() -> float:
        start = time.perf_counter()
        run()
        return views / (time.perf_counter() - start)

    return turn


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--batches", type=int, default=10, help=f"of {BATCH} images in a pass")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images_NHWC = load_images(args.npz, args.batches * BATCH)
    runs = {
        "lightly, 2 workers": loaded(images_NHWC, FromPil()),
        "torchvision v2, 2 workers": loaded(images_NHWC, FromTensor()),
        OURS: batched(images_NHWC),
    }
    turns = {name: timed(run, 2 * len(images_NHWC)) for name, run in runs.items()}
    rates = interleave(turns, args.rounds, "augmentation")
    ratios = {
        f"{OURS} / {name}": ratio(rates[OURS], values)
        for name, values in rates.items()
        if name != OURS
    }
    medians = ", ".join(f"{name}: {median(values):.0f}" for name, values in rates.items())
    note = f"batch {BATCH}, {args.threads} threads, medians in views/s: {medians}"
    publish(args.out, "augmentation", "Two SimCLR views of 32x32 images", ratios, note)


if __name__ == "__main__":
    main()
