"""Images in rows and columns, as PNG data URIs."""

import base64
import io
from collections.abc import Iterator, Sequence
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

    @property
    def alt(self) -> str:
        """What the grid shows, for those who cannot see it."""
        return f"{len(self.rows)} views in rows; columns: {', '.join(self.columns)}"


@dataclass(frozen=True)
class Neighbors:
    """The nearest test images of a few queries, by teacher and by student.

    Attributes:
        queries: images (H, W, 3) uint8.
        teacher, student: k images per query, nearest first.
        shared: for each of the student's, whether it is also one of the teacher's.
    """

    queries: Sequence[np.ndarray]
    teacher: Sequence[Sequence[np.ndarray]]
    student: Sequence[Sequence[np.ndarray]]
    shared: Sequence[Sequence[bool]]
    caption: str = ""

    @property
    def headings(self) -> list[str]:
        """Of the columns: the query and the ranks."""
        return ["query", *(str(rank + 1) for rank in range(len(self.shared[0])))]

    @property
    def counted(self) -> str:
        """How many of the student's neighbors are also the teacher's."""
        return f"{sum(map(sum, self.shared))} of {sum(map(len, self.shared))}"

    @property
    def sheets(self) -> Iterator[tuple[str, list[list[np.ndarray]], list[list[bool]]]]:
        """Name, rows of images and frames, by teacher and by student; a query comes first."""
        for name, found, frames in (
            ("Teacher", self.teacher, [[False] * len(row) for row in self.shared]),
            ("Student", self.student, self.shared),
        ):
            rows = [[query, *row] for query, row in zip(self.queries, found, strict=True)]
            yield name, rows, [[False, *row] for row in frames]


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
    """Images side by side on a transparent ground, each at most ``cell`` pixels a side.

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
                tile_HWC[rim] = (*SHARED_RGB, 255)
            sheet_HWC[i * step : i * step + cell, j * step : j * step + cell] = tile_HWC
    return sheet_HWC


def _tile(picture: np.ndarray, cell: int) -> np.ndarray:
    """The image at the size of a cell: its own pixels shown as squares when it is smaller.

    One that is no square is shown whole, with a transparent rest.
    """
    image = Image.fromarray(picture).convert("RGBA")
    method = Image.Resampling.NEAREST if max(image.size) < cell else Image.Resampling.LANCZOS
    width, height = (max(1, round(cell * side / max(image.size))) for side in image.size)
    tile_HWC = np.zeros((cell, cell, 4), np.uint8)
    top, left = (cell - height) // 2, (cell - width) // 2
    tile_HWC[top : top + height, left : left + width] = np.array(
        image.resize((width, height), method)
    )
    return tile_HWC
