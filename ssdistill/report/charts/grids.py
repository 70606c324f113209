"""Images in rows and columns, as PNG data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

CELL = 72
GAP = 6
RIM = 4
SHARED_RGB = (11, 143, 130)


@dataclass(frozen=True)
class ViewGrid:
    """What the networks see: one row per view, one column per image; (H, W, 3) uint8 each."""

    rows: Sequence[Sequence[np.ndarray]]
    columns: Sequence[str]
    caption: str = ""


@dataclass(frozen=True)
class Neighbors:
    """The nearest test images of a few queries, by teacher and by student.

    Attributes:
        queries: images (H, W, 3) uint8.
        teacher, student: k images per query, nearest first.
        shared: for each of the student's, whether the teacher found it too.
    """

    queries: Sequence[np.ndarray]
    teacher: Sequence[Sequence[np.ndarray]]
    student: Sequence[Sequence[np.ndarray]]
    shared: Sequence[Sequence[bool]]
    caption: str = ""


def png_uri(image_HWC: np.ndarray) -> str:
    """``data:image/png;base64,…`` of an RGB or RGBA uint8 image."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_grid(
    rows: Sequence[Sequence[np.ndarray]],
    framed: Sequence[Sequence[bool]] | None = None,
    cell: int = CELL,
) -> np.ndarray:
    """Images side by side on a transparent ground, each ``cell`` pixels a side.

    Args:
        rows: equally long rows of (H, W, 3) uint8 images of any size.
        framed: which of them get a colored rim.
    """
    step = cell + GAP
    columns = len(rows[0])
    sheet_HWC = np.zeros((len(rows) * step - GAP, columns * step - GAP, 4), np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            tile_HWC = _tile(picture, cell)
            if framed is not None and framed[i][j]:
                rim = np.ones((cell, cell), bool)
                rim[RIM:-RIM, RIM:-RIM] = False
                tile_HWC[rim, :3] = SHARED_RGB
            sheet_HWC[i * step : i * step + cell, j * step : j * step + cell] = tile_HWC
    return sheet_HWC


def _tile(picture: np.ndarray, cell: int) -> np.ndarray:
    """The image at the size of a cell: its own pixels shown as squares when it is smaller."""
    image = Image.fromarray(picture).convert("RGBA")
    method = Image.Resampling.NEAREST if max(image.size) < cell else Image.Resampling.LANCZOS
    return np.array(image.resize((cell, cell), method))
