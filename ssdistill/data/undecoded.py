"""Images that have not been decoded, for dry runs: only their number is known."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssdistill.data.channel_scale import Scale
from ssdistill.data.disk_space import check_space
from ssdistill.data.form import Form
from ssdistill.data.held_pixels import Holding
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
from ssdistill.data.store_places import find_store, provisional
from ssdistill.data.store_writer import RGB_HELD
from ssdistill.data.weighting import weigh
from ssdistill.errors import UserError, shown
from ssdistill.settings import Size, height_width

PROVISIONAL = 0.5, 0.25
"""Mean and standard deviation of each channel until those of the images are measured."""


class Undecoded(ImageSet):
    """One split whose pixels have not been read; its size includes unreadable images.

    Mean, standard deviation and fingerprint are provisional, so stage hashes that contain them
    differ from those of a run.

    Attributes:
        images: has the right shape, and the right type if it is known, but cannot be indexed.
        to_store: whether a run would store squares, rather than crop views from originals.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        raw: RawSplit,
        image_size: Size,
        root: Path,
        to_store: bool,
        holding: Holding = RGB_HELD,
    ):
        self.source, self.split, self.root, self.to_store = source, split, root, to_store
        self._title, self.form = raw.title, holding.form
        self.channel_names = holding.form.names
        seen = holding.form.seen(image_size)
        self._stored = _Unread(len(raw), image_size, holding)
        self.images = _Unread(len(raw), seen, holding)
        self.fingerprint = f"not decoded: {split}"
        self.mean, self.std = ((value,) * holding.form.count for value in PROVISIONAL)
        self.window, self.bad, self.bad_rows, self.notices = None, [], [], []

    @property
    def place(self) -> str:
        return self._title

    @property
    def stored(self) -> "_Unread":
        return self._stored

    @property
    def num_bytes(self) -> int:
        """Bytes that a run would write when it opens the split."""
        size = math.prod(self._stored.shape[1:]) * self._stored.dtype.itemsize
        return len(self) * (size if self.to_store else RECORD.itemsize)


class _Unread:
    """Placeholder with the shape and type of an array (N, H, W, C)."""

    ndim = 4

    def __init__(self, count: int, size: Size, holding: Holding):
        self.shape = (count, *height_width(size), holding.form.count)
        self.dtype = holding.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: object) -> np.ndarray:
        raise RuntimeError("the pixels have not been read; open the images for a run first")


def known_stores(
    source: Source,
    settings: StoreSettings,
    image_size: Size,
    root: Path,
    workers: int | None = None,
) -> dict[str, ImageSet]:
    """Open training and test images as far as possible without decoding or writing anything.

    Returns:
        as :func:`ssdistill.data.opening.open_stores`, with :class:`Undecoded` for splits that a
        run would have to decode.

    Raises:
        UserError: whatever the source or the store raises, a split without images, or too little
            disk space for images to store.
    """
    settings = settings.model_copy(update={"verify": False})
    source.reading = replace(source.reading, folder=Path(root))
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
            # If the type of the values is unknown, plan for the wider one.
            holding = provisional(source, settings, root) or _widest_holding(settings.form)
            if stored:
                check_space(_existing(root), raw, image_size, holding.pixel_bytes())
            opened[split] = Undecoded(source, split, raw, image_size, root, stored, holding)
    if not isinstance(opened["train"], Undecoded):
        weigh(opened["train"])
    return {"test": opened["train"], **opened}


def _widest_holding(form: Form) -> Holding:
    return Holding(form, Scale(np.dtype(np.float32), ((0.0, 1.0),) * form.count))


def _existing(folder: Path) -> Path:
    """Return the folder, or its closest existing parent."""
    folder = Path(folder).absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def undecoded_of(images: Iterable[ImageSet]) -> list[Undecoded]:
    """Return the splits that have not been decoded, each once."""
    return [*dict.fromkeys(split for split in images if isinstance(split, Undecoded))]
