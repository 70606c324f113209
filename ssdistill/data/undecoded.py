"""Images that have not been decoded, for dry runs: only their number is known."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ssdistill.data.image_index import RECORD
from ssdistill.data.image_set import ImageSet
from ssdistill.data.opening import (
    is_indexed,
    open_originals,
    open_stored,
    splits_of,
    uses_originals,
)
from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.store import check_space, find_store
from ssdistill.errors import UserError, shown

PROVISIONAL = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
"""Mean and standard deviation until those of the images are measured."""


class Undecoded(ImageSet):
    """One split whose pixels have not been read; its size includes unreadable images.

    Mean, standard deviation and fingerprint are provisional, so stage hashes that contain them
    differ from those of a run.

    Attributes:
            images: has the right shape, but cannot be indexed.
        squares: whether a run would store squares, rather than crop views from originals.
    """

    def __init__(
        self, source: Source, split: str, raw: RawSplit, image_size: int, root: Path, squares: bool
    ):
        self.source, self.split, self.root, self.squares = source, split, root, squares
        self._title = raw.title
        self.images = _Unread(len(raw), image_size)
        self.fingerprint = f"not decoded: {split}"
        self.mean, self.std = PROVISIONAL
        self.window, self.bad, self.bad_rows, self.notices = None, [], [], []

    @property
    def place(self) -> str:
        return self._title

    @property
    def num_bytes(self) -> int:
        """Bytes that a run would write when it opens the split."""
        size = self.images.shape[1] * self.images.shape[2] * self.images.shape[3]
        return len(self) * (size if self.squares else RECORD.itemsize)


class _Unread:
    """Placeholder with the shape and type of an array (N, side, side, 3) of uint8."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, side: int):
        self.shape = (count, side, side, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: object) -> np.ndarray:
        raise RuntimeError("the pixels have not been read; open the images for a run first")


def known_stores(
    source: Source, settings: StoreSettings, image_size: int, root: Path, workers: int | None = None
) -> dict[str, ImageSet]:
    """Open training and test images as far as possible without decoding or writing anything.

    Returns:
        as :func:`ssdistill.data.opening.open_stores`, with :class:`Undecoded` for splits that a
        run would have to decode.

    Raises:
        UserError: whatever the source or the store raises, a split without images, or too little
            disk space for images to store.
    """
    stored = not uses_originals(source, settings, image_size, root)
    opened: dict[str, ImageSet] = {}
    for split in splits_of(source):
        if stored and find_store(source, split, image_size, root, settings):
            opened[split] = open_stored(source, split, settings, image_size, root)
        elif not stored and is_indexed(source, split, settings, image_size, root):
            opened[split] = open_originals(source, split, settings, image_size, root, workers)
        else:
            raw = source.split(split)
            if not len(raw):
                raise UserError(f"{shown(raw.title)} has no images; add some")
            if stored:
                check_space(_existing(root), raw, image_size)
            opened[split] = Undecoded(source, split, raw, image_size, root, stored)
    return {"test": opened["train"], **opened}


def _existing(folder: Path) -> Path:
    """Return the folder, or its closest existing parent."""
    folder = Path(folder).absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def undecoded_of(images: Iterable[ImageSet]) -> list[Undecoded]:
    """Return the splits that have not been decoded, each once."""
    return [*dict.fromkeys(split for split in images if isinstance(split, Undecoded))]
