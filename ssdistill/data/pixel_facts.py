"""How the pixels of images became the numbers that a model receives, as models record it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssdistill.data.form import RGB

TOLERANCE = 1e-6
"""Relative difference of two windows, of their width, that is rounding."""


def pixel_facts(images: Any) -> dict[str, Any]:
    """Return JSON values that say which bands and windows make up the channels of images.

    Args:
        images: an :class:`ssdistill.data.image_set.ImageSet`.

    Returns:
        ``channels``: bands of a file, in order, or None for 8-bit RGB; ``names`` of them, or None;
        ``windows``: a pair of values that map to 0 and 1 for each channel, a single pair for all,
        or None for 8 bits.
    """
    form = getattr(images, "form", RGB)
    windows = getattr(images, "windows", None)
    window = getattr(images, "window", None)
    pairs = windows or ([window] if window else None)
    return {
        "channels": form.channels and list(form.channels),
        "names": form.names and list(form.names),
        "windows": pairs and [[float(low), float(high)] for low, high in pairs],
    }


def differences(trained: Mapping[str, Any], received: Mapping[str, Any]) -> list[str]:
    """Name the differences between the images of a training and others, a line each.

    Args:
        trained, received: from :func:`pixel_facts`.
    """
    lines = []
    by_name = trained.get("names") and received.get("names")
    first, second = (
        (facts.get("names" if by_name else "channels")) for facts in (trained, received)
    )
    if first != second:
        lines.append(
            f"was trained on {_channels(first)} but will receive {_channels(second)}: "
            "set data.channels to the former"
        )
    if not _alike(trained.get("windows"), received.get("windows")):
        lines.append(
            f"was trained on {_windows(trained.get('windows'))} but will receive "
            f"{_windows(received.get('windows'))}: the same value means something else to it; set "
            "data.window to the former"
        )
    return lines


def _channels(bands: Sequence[Any] | None) -> str:
    return "8-bit RGB" if bands is None else f"channels {', '.join(map(str, bands))}"


def _windows(pairs: Sequence[Sequence[float]] | None) -> str:
    if pairs is None:
        return "images of 8 bits"
    written = ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)
    return f"window {written}" if len(pairs) == 1 else f"windows [{written}]"


def _alike(first: Sequence[Sequence[float]] | None, second: Sequence[Sequence[float]] | None):
    if first is None or second is None or len(first) != len(second):
        # Of other channels, which another line names; or one side has 8 bits.
        return (first is None) == (second is None)
    return all(
        abs(a - b) <= TOLERANCE * abs(one[1] - one[0])
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )
