"""What was written: a file of embeddings, and what its rows are of."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssdistill.label_free.embedding.parts import Part, all_names


@dataclass(frozen=True, eq=False)
class Embedded:
    """A file of embeddings.

    Attributes:
        path: the file.
        shape: (N, D), or (N, T, D) of patches.
        dtype: of the numbers, float32 or float16.
        names_path: the file of names beside an ``.npy`` or ``.safetensors`` file, else None.
        neighbors_path: the file of nearest neighbors, if requested.
        parts: the images by split.
        seconds: that this call took.
        notices: what must be known to use the embeddings rightly, one line each.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    names_path: Path | None
    neighbors_path: Path | None
    parts: tuple[Part, ...] = field(repr=False)
    seconds: float = 0.0
    notices: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def names(self) -> list[str]:
        """Name of the image of each row."""
        return [name for _, names in all_names(self.parts) for name in names]

    @property
    def splits(self) -> list[str]:
        """Split of the image of each row."""
        return [split for split, names in all_names(self.parts) for _ in names]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image that could not be read and has no row."""
        return [
            (part.name_of(row), reason)
            for part in self.parts
            for row, reason in sorted(part.skipped.items())
        ]
