"""A page of small images: those that a check found, and some of all."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.checking import Checked, Finding
from ssdistill.data.decode import pixel_limit
from ssdistill.data.deep_pixels import render, visible_range
from ssdistill.errors import shortened, shown
from ssdistill.record.provenance import provenance
from ssdistill.report.document import Headline, rendered
from ssdistill.report.tables.table import Table

SIDE, QUALITY = 128, 80
"""Of a small image: longer side in pixels, and of its JPEG."""
MOST_SHOWN, MOST_GROUPS, MOST_OF_GROUP, MOST_LISTED = 60, 30, 8, 200
LEDES = {
    "Near-duplicates": "Groups of images with similar embeddings.",
    "Duplicates": "Groups of images with equal bytes.",
    "Changed": "Read again, these differ from the index.",
    "Constant": "All pixels are equal.",
    "Unusual sizes": "Far from the median size, or very elongated.",
    "Other modes": "Encoded unlike most others.",
    "Sample": "Evenly spread over the training images.",
}


@dataclass(frozen=True)
class Small:
    """A small image as a data URI, None if there is none, with its name."""

    uri: str | None
    name: str
    note: str


@dataclass(frozen=True)
class Sheet:
    """A section of the page: groups of small images, and how many are not shown."""

    title: str
    lede: str
    groups: Sequence[Sequence[Small]]
    more: int = 0


def contact_sheet(checked: Checked, tables: Sequence[Table], max_pixels: int) -> str:
    """Return the page as self-contained HTML.

    Args:
        tables: counts and sizes.
        max_pixels: an image with more pixels is not shown.
    """
    with pixel_limit(max_pixels):
        sheets = list(_sheets(checked))
    counts = checked.facts()["counts"]
    listed = checked.unreadable[:MOST_LISTED]
    return rendered(
        "check.html",
        title=f"Check of {shortened(checked.source.description.partition(',')[0], 80)}",
        summary=f"{len(checked)} images, {len(checked.unreadable)} of which cannot be read.",
        notices=checked.notices,
        headline=[Headline(name.replace("_", " "), f"{n}") for name, n in counts.items() if n],
        tables=tables,
        unreadable=Table(
            ("image", "split", "reason"),
            tuple((shown(f.name), f.split, f.detail) for f in listed),
            numeric=(False,) * 3,
        )
        if listed
        else None,
        left_out=len(checked.unreadable) - len(listed),
        sheets=sheets,
        provenance=provenance(),
    )


def _sheets(checked: Checked) -> Iterator[Sheet]:
    for title, groups in (
        ("Duplicates", checked.duplicates), ("Near-duplicates", checked.near or [])
    ):  # fmt: skip
        if groups:
            small = [[_small(checked, f) for f in g[:MOST_OF_GROUP]] for g in groups[:MOST_GROUPS]]
            left_out = sum(map(len, groups)) - sum(map(len, small))
            yield Sheet(title, LEDES[title], small, left_out)
    for title, found in {
        "Changed": checked.changed or [],
        "Constant": checked.constant,
        "Unusual sizes": checked.odd_sizes,
        "Other modes": checked.other_modes,
        "Sample": _sample(checked),
    }.items():
        if found:
            small = [_small(checked, finding) for finding in found[:MOST_SHOWN]]
            yield Sheet(title, LEDES[title], [small], len(found) - len(small))


def _sample(checked: Checked) -> list[Finding]:
    part = checked.parts["train"]
    rows = np.flatnonzero(part.facts_N["height"])
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_SHOWN, len(rows))).astype(int)]
    return [Finding("train", row, part.raw.name(row)) for row in rows.tolist()]


def _small(checked: Checked, finding: Finding) -> Small:
    try:
        pixels = checked.parts[finding.split].shown(finding.row)
    except (BadImage, OSError):
        pixels = None
    name = shortened(f"{finding.split}: {finding.name}", 90)
    return Small(None if pixels is None else _uri(pixels), name, finding.detail)


def _uri(pixels: np.ndarray) -> str:
    if pixels.dtype != np.uint8:
        low, high = visible_range(pixels)
        pixels = render(pixels, (low, high) if low < high else (0.0, max(1.0, abs(low))))
    image, buffer = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
