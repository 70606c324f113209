"""Inspect every image of a source: size, mode, hash, and whether it can be read."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.channel_scale import chosen
from ssdistill.data.decode import ANIMATIONS, TRANSPARENT, pixel_limit, read_pixels
from ssdistill.data.displaying import displayed
from ssdistill.data.form import RGB, Form
from ssdistill.data.formats import open_image
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.progress import with_bar
from ssdistill.data.retry import retried
from ssdistill.data.splits import RawSplit

FACTS = np.dtype([("digest", "V16"), ("height", "<u4"), ("width", "<u4"), ("flags", "<u2")])
"""One image: a hash of its bytes, its size in pixels after EXIF orientation (0 if unreadable), and
its :data:`FLAGS`."""
FLAGS = ("gray", "CMYK", "alpha", "palette", "more than 8 bits", "animated", "constant")
GRAY, CMYK, ALPHA, PALETTE, DEEP, ANIMATED, CONSTANT = (1 << bit for bit in range(len(FLAGS)))
MODES = GRAY | CMYK | ALPHA | DEEP | ANIMATED
"""Flags of the encoding, by which an image may differ from the others."""
PIECE = 256
SPARSE = 8
"""Step between rows and columns that are compared first, where most images already differ."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
EXTREME_ASPECT = 4.0
"""Ratio of longer to shorter side reported as extreme; a square crop then keeps a quarter."""
OFF_MEDIAN = 4.0
"""Factor from the median at which the shorter side is reported as small, the longer as large."""


class Inspected:
    """Properties of all images of a split.

    Attributes:
        facts_N: (N,) :data:`FACTS`.
        reasons: for each unreadable image, by row, the reason.
    """

    def __init__(self, raw: RawSplit, max_pixels: int, form: Form = RGB):
        """Read and decode every image, in threads.

        Args:
            max_pixels: images with more pixels count as unreadable.
            form: of the images; those that lack a channel count as unreadable, too.
        """
        self.raw, self.form = raw, form
        self.facts_N = np.zeros(len(raw), FACTS)
        self.reasons: dict[int, str] = {}
        with pixel_limit(max_pixels), warnings.catch_warnings():
            # Damaged EXIF, odd palettes: the image is either read or listed.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for rows, facts in with_bar(_pieces(raw, form), len(raw), f"checking {raw.title}"):
                for row, fact in zip(rows, facts, strict=True):
                    if isinstance(fact, BadImage):
                        self.reasons[row] = fact.reason
                    else:
                        self.facts_N[row] = fact

    def shown(self, row: int) -> np.ndarray:
        """Return an image for display: unchanged, or three of its channels as (H, W, 3) uint8.

        Raises:
            BadImage: it cannot be read.
        """
        if self.form.channels is None:
            return self.raw.image(row)
        bands_HWC = chosen(self.raw.bands(row), self.form.channels).astype(np.float32)
        # No window is known here: that of the image itself.
        low_C, width_C = bands_HWC.min((0, 1)), np.ptp(bands_HWC, (0, 1))
        bands_HWC = (bands_HWC - low_C) / np.where(width_C > 0, width_C, 1)
        mean_C, std_C = bands_HWC.mean((0, 1)), bands_HWC.std((0, 1))
        std_C[std_C == 0] = 1
        return displayed(bands_HWC[None], self.form, mean_C.tolist(), std_C.tolist())[0]

    def flagged(self, flag: int) -> np.ndarray:
        """Return the rows that have a flag."""
        return np.flatnonzero(self.facts_N["flags"] & flag)


def _pieces(raw: RawSplit, form: Form) -> Iterator[tuple[range, list[tuple | BadImage]]]:
    with AbandoningPool(os.cpu_count() or 1, "checking") as pool:
        for start in range(0, len(raw), PIECE):
            rows = range(start, min(start + PIECE, len(raw)))
            yield rows, pool.map(partial(_fact, raw, form), rows)


def _fact(raw: RawSplit, form: Form, row: int) -> tuple | BadImage:
    """Return hash, height, width and flags of an image."""
    try:
        encoded, flags = raw.encoded(), 0
        name, seconds = raw.name(row), raw.reading.seconds
        if form.channels is not None:
            pixels = chosen(retried(raw.bands, row, name, seconds), form.channels)
            file = encoded and retried(encoded.original, row, name, seconds)
            content = file or f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()
        elif encoded is None:
            pixels = raw.image(row)
            content = f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()
        else:
            content = retried(encoded.read, row, name, seconds)
            frame = encoded.frame(row)
            pixels, flags = read_pixels(content, frame=frame), _mode_of(content)
            content += f"#{frame}".encode() if frame else b""
    except BadImage as error:
        return error
    if pixels.dtype != np.uint8:
        flags |= DEEP
    if _equal(pixels[:1, :1], pixels):
        flags |= CONSTANT
    elif form.channels is None and (pixels.ndim == 2 or _equal(pixels[..., :1], pixels[..., 1:3])):
        flags |= GRAY
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return digest, pixels.shape[0], pixels.shape[1], flags


def _equal(reference: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether all pixels equal a reference; a sparse comparison rules most images out."""
    sparse = (slice(None, None, SPARSE),) * 2
    return bool((reference[sparse] == pixels[sparse]).all() and (reference == pixels).all())


def _mode_of(content: bytes) -> int:
    """Return the flags of an encoded, readable image, from its header."""
    with open_image(io.BytesIO(content)) as image:
        flags = GRAY if image.mode in ("1", "L", "LA", "La") else 0
        flags |= CMYK if image.mode == "CMYK" else 0
        flags |= PALETTE if image.mode in ("P", "PA") else 0
        transparent = image.mode in TRANSPARENT or "transparency" in image.info
        flags |= ALPHA if transparent else 0
        animated = image.format in ANIMATIONS and getattr(image, "is_animated", False)
        return flags | (ANIMATED if animated else 0)


def modes_of(parts: Sequence[Inspected]) -> dict[str, int]:
    """Return the number of images of each mode, most frequent first."""
    counts: dict[str, int] = {}
    for part in parts:
        good = part.facts_N[part.facts_N["height"] > 0]["flags"] & MODES
        for flags, count in zip(*np.unique(good, return_counts=True), strict=True):
            name = mode_name(int(flags))
            counts[name] = counts.get(name, 0) + int(count)
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def mode_name(flags: int) -> str:
    """Return the name of a mode, such as ``gray and alpha``."""
    named = [name for bit, name in enumerate(FLAGS) if flags & MODES & (1 << bit)]
    return " and ".join(named) or "RGB"


def quantiles(parts: Sequence[Inspected]) -> dict[str, list[float]]:
    """Return the :data:`QUANTILES` of width, height, and longer over shorter side."""
    height_N, width_N = _sizes(parts)
    if not len(height_N):
        return {}
    aspect_N = np.maximum(height_N, width_N) / np.minimum(height_N, width_N)
    columns = {"width": width_N, "height": height_N, "aspect": aspect_N}
    return {name: np.quantile(values, QUANTILES).tolist() for name, values in columns.items()}


def odd_sizes(parts: Sequence[Inspected]) -> list[dict[int, str]]:
    """Return images of unusual size, for each part, by row, with a description."""
    height_N, width_N = _sizes(parts)
    if not len(height_N):
        return [{} for _ in parts]
    short = float(np.median(np.minimum(height_N, width_N)))
    long = float(np.median(np.maximum(height_N, width_N)))
    odd_by_part = []
    for part in parts:
        h_N, w_N = (part.facts_N[side].astype(np.int64) for side in ("height", "width"))
        least_N, most_N = np.minimum(h_N, w_N), np.maximum(h_N, w_N)
        odd: dict[int, str] = {}
        tests = {
            "extreme aspect": most_N > EXTREME_ASPECT * least_N,
            "small": least_N * OFF_MEDIAN < short,
            "large": most_N > OFF_MEDIAN * long,
        }
        for text, odd_N in tests.items():
            for row in np.flatnonzero(odd_N & (h_N > 0)).tolist():
                odd[row] = f"{odd[row]}, {text}" if row in odd else text
        odd_by_part.append(dict(sorted(odd.items())))
    return odd_by_part


def _sizes(parts: Sequence[Inspected]) -> tuple[np.ndarray, np.ndarray]:
    good = [part.facts_N[part.facts_N["height"] > 0] for part in parts]
    facts_N = np.concatenate(good)
    return facts_N["height"].astype(np.int64), facts_N["width"].astype(np.int64)
