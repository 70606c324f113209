"""Measure how much views lose if images are downscaled: PSNR against views of the originals."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.cutting import decode
from ssdistill.data.geometry import CROP_SLOTS, random_boxes
from ssdistill.data.order import shuffled
from ssdistill.data.packing.encoding import member, smaller
from ssdistill.data.splits import RawSplit

SAMPLED, CROPS = 128, 4
"""Number of images, and of views of each."""
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Settings of pretraining views: those of torchvision's ``RandomResizedCrop``."""
VIEW = 7 / 8
"""Side of a view relative to the shorter side of the image: 224 to 256."""
MOST = 99.0
"""PSNR of identical views, in dB."""


@dataclass(frozen=True)
class Loss:
    """PSNR of views.

    Attributes:
        view: side of the views in pixels.
        num_images: number of images they were cropped from.
        median, worst: median and 5th percentile over views, in dB.
    """

    view: int
    num_images: int
    median: float
    worst: float


def measure(raw: RawSplit, short_side: int, quality: int) -> Loss | None:
    """Compare views of a sample of images with views of their downscaled versions.

    The sample and the views are the same in every call. Boxes are drawn on the smaller image and
    mapped to the original without rounding, so that the loss measures detail, not shift.

    Returns:
        None if no image is downscaled.
    """
    count, view = min(SAMPLED, len(raw)), max(1, round(short_side * VIEW))
    uniform_SK = torch.from_numpy(np.random.default_rng(0).random((count * CROPS, CROP_SLOTS)))
    psnr: list[float] = []
    for k, row in enumerate(shuffled(np.arange(count), len(raw), 0, 0).tolist()):
        try:
            _, content = member(raw, row)
            encoded = smaller(content, short_side, quality)
        except BadImage:
            continue
        if encoded is None:
            continue
        whole, small = _image(content), Image.open(io.BytesIO(encoded), formats=("JPEG",))
        uniform_VK = uniform_SK[k * CROPS : (k + 1) * CROPS]
        boxes = random_boxes(uniform_VK, small.height, small.width, SCALE, RATIO)
        edges = (boxes.left_B, boxes.top_B, boxes.width_B, boxes.height_B)
        scale_x, scale_y = whole.width / small.width, whole.height / small.height
        for left, top, width, height in torch.stack(edges, dim=1).tolist():
            box = (left, top, left + width, top + height)
            larger = (left * scale_x, top * scale_y, box[2] * scale_x, box[3] * scale_y)
            larger = (*larger[:2], min(larger[2], whole.width), min(larger[3], whole.height))
            psnr.append(_psnr(_view(small, box, view), _view(whole, larger, view)))
    if not psnr:
        return None
    worst, median = np.percentile(psnr, [5, 50])
    return Loss(view, len(psnr) // CROPS, float(median), float(worst))


def _image(content: bytes) -> Image.Image:
    pixels_CHW, _ = decode(content)
    return Image.fromarray(np.ascontiguousarray(pixels_CHW.permute(1, 2, 0).numpy()))


def _view(image: Image.Image, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box), np.float64)


def _psnr(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    error = float(np.mean((one_HWC - other_HWC) ** 2))
    return min(MOST, 10 * np.log10(255**2 / error)) if error else MOST
