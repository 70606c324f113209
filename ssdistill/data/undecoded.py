"""Images of which only the number is known: what a plan is made from before any is decoded."""

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
"""Mean and standard deviation that networks are tried with until those of the images are known."""


class Undecoded(ImageSet):
    """One split of which no pixel has been read; unreadable images are still counted.

    Mean, standard deviation and fingerprint are provisional, so no hash of a stage that contains
    them is one that a run would have.

    Attributes:
        images: of the right shape; none of them can be had.
        squares: whether they will be stored as squares; views are cut from the originals else.
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
        """Bytes that opening the split for a run adds to the disk."""
        size = self.images.shape[1] * self.images.shape[2] * self.images.shape[3]
        return len(self) * (size if self.squares else RECORD.itemsize)


class _Unread:
    """Shape and type of an array (N, side, side, 3) of uint8 that is not there."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, side: int):
        self.shape = (count, side, side, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: object) -> np.ndarray:
        raise RuntimeError("images that are not decoded have no pixels")


def known_stores(
    source: Source, settings: StoreSettings, image_size: int, root: Path, workers: int | None = None
) -> dict[str, ImageSet]:
    """Open what :func:`ssdistill.data.opening.open_stores` made before; decode and write nothing.

    Returns:
        the training and test images; :class:`Undecoded` where a run would have to decode them.

    Raises:
        UserError: whatever the source raises when it is listed, what is wrong with a store, no
            image at all, or a disk with too little space for those that would be stored.
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
    """Return the folder, or the closest one above it that is there."""
    folder = Path(folder).absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def undecoded_of(images: Iterable[ImageSet]) -> list[Undecoded]:
    """Return the splits of which nothing has been read, each once."""
    return [*dict.fromkeys(split for split in images if isinstance(split, Undecoded))]
