"""Generated images of the form that a config's data have, to time trainings without the data."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.opening import STORED_UP_TO, open_source
from ssdistill.data.settings import StoreSettings
from ssdistill.experiment.schema import Experiment
from ssdistill.settings import Size, height_width
from ssdistill.settings.registry import SOURCES

ARRAYS = ("digits", "npy", "npz", "hdf5")
"""Sources that hold arrays of pixels, whatever their size."""
DISTINCT = 64
"""Images that differ; further ones repeat them."""
PHOTOGRAPH = (375, 500)
"""Median height and width of the images of ImageNet."""
QUALITY = 92
KEPT = ("image_size", "view_size", "channels", "display", "resize")
"""Settings of the data that determine what networks see."""


def with_generated_images(experiment: Experiment, count: int, folder: Path) -> Experiment:
    """Return the experiment on ``count`` generated images, written to ``folder``.

    Images of up to 96 pixels, and arrays, are an array; larger ones are JPEG files of the size of
    ImageNet's, decoded whenever they are read.

    Raises:
        UserError: whatever the source raises when it reads the size of its images.
    """
    data = experiment.data
    size: Size = data.image_size or open_source(data).default_image_size
    kept = {name: getattr(data, name) for name in KEPT} | {"image_size": size}
    if _decodes(data, size):
        write_photographs(folder / "images", count)
        chosen = {"kind": "folder", "path": str(folder / "images"), "pixels": "original"}
    else:
        path = folder / "images.npy"
        channels = data.channels
        wanted = channels.values() if isinstance(channels, dict) else channels or range(3)
        height, width = height_width(size)
        images_NHWC = generated(min(count, DISTINCT), height, width, max(wanted) + 1)
        np.save(path, np.resize(images_NHWC, (count, *images_NHWC.shape[1:])))
        chosen = {"kind": "npy", "path": str(path), "layout": "NHWC"}
    settings: Any = SOURCES.schema(chosen["kind"])
    generated_data = settings.model_validate({**kept, **chosen, "test_fraction": 0.0})
    return experiment.model_copy(update={"data": generated_data})


def _decodes(data: StoreSettings, size: Size) -> bool:
    """Whether a run would decode images whenever it reads them."""
    if data.pixels != "auto" or data.channels is not None:
        return data.pixels == "original" and data.channels is None
    kind = str(getattr(data, "kind", ""))
    return kind not in ARRAYS and max(height_width(size)) > STORED_UP_TO


def generated(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return random images with the 1/f spectrum of photographs, (N, H, W, C) uint8."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    images_NHWC = np.empty((count, height, width, channels), np.uint8)
    for image_HWC in images_NHWC:
        white_CHW = rng.standard_normal((channels, height, width))
        x_CHW = np.fft.irfft2(np.fft.rfft2(white_CHW) / frequency, s=(height, width))
        x_CHW = x_CHW / max(float(x_CHW.std()), 1e-9) * 0.22 + 0.47
        image_HWC[:] = (x_CHW.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return images_NHWC


def write_photographs(folder: Path, count: int) -> None:
    """Write ``count`` JPEG files, ``DISTINCT`` different ones, of 375x500 pixels to a folder."""
    from PIL import Image

    folder.mkdir()
    first = min(count, DISTINCT)
    for number, image_HWC in enumerate(generated(first, *PHOTOGRAPH)):
        Image.fromarray(image_HWC).save(folder / f"{number:06}.jpg", quality=QUALITY)
    for number in range(first, count):
        os.link(folder / f"{number % first:06}.jpg", folder / f"{number:06}.jpg")
