"""Convert images of any channels to RGB for display."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssdistill.data.form import Form

COLORS = ("red", "green", "blue")
DEVIATIONS = 2.0
"""Distance of black and white from the mean, in standard deviations."""


def channels_text(images: Any) -> str:
    """Return what to say of the channels of an image set, after its size; empty for plain RGB."""
    count, names = len(images.mean), images.channel_names
    if names is None and count == len(COLORS):
        return ""
    named = f" ({', '.join(names)})" if names else ""
    return f", {count} channel{'s' * (count > 1)}{named}"


def displayed(
    images_NHWC: np.ndarray, form: Form, mean_C: Sequence[float], std_C: Sequence[float]
) -> np.ndarray:
    """Return images as RGB.

    8-bit RGB without selected channels is returned unchanged. Otherwise each channel is stretched:
    two standard deviations below its mean become black, two above become white; or the ends of
    [0, 1] where these are nearer, so that black borders remain black.

    Args:
        images_NHWC: (N, H, W, C) uint8, or floats in [0, 1].
        form: determines the channels to show: those in ``display``; or those named red, green and
            blue; or the first three; or, of one or two channels, the first as gray.
        mean_C, std_C: in units of [0, 1].

    Returns:
        (N, H, W, 3) uint8.
    """
    if form.channels is None and images_NHWC.shape[-1] == 3 and images_NHWC.dtype == np.uint8:
        return images_NHWC
    white = 255 if images_NHWC.dtype == np.uint8 else 1
    shown_NHW3 = np.empty((*images_NHWC.shape[:-1], 3), dtype=np.uint8)
    for color, k in enumerate(_chosen(form, images_NHWC.shape[-1])):
        values = images_NHWC[..., k].astype(np.float32) / white
        low = max(mean_C[k] - DEVIATIONS * std_C[k], 0.0)
        high = min(mean_C[k] + DEVIATIONS * std_C[k], 1.0)
        values = (values - low) / (high - low)
        shown_NHW3[..., color] = np.floor(values.clip(0, 1) * 255 + 0.5)
    return shown_NHW3


def _chosen(form: Form, count: int) -> tuple[int, ...]:
    if form.display is not None:
        return form.display
    if form.names is not None and set(COLORS) <= set(form.names):
        return tuple(form.names.index(color) for color in COLORS)
    return (0, 1, 2) if count >= 3 else (0, 0, 0)
