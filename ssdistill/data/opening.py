"""Open the source and the images that the data settings of a config describe."""

import hashlib
import json
import logging
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdistill.data.channel_scale import scale_of
from ssdistill.data.decode import pixel_limit
from ssdistill.data.disk_space import plain_disk_errors
from ssdistill.data.held_pixels import Holding
from ssdistill.data.image_index import ImageIndex, is_current
from ssdistill.data.image_set import ImageSet
from ssdistill.data.moments import Moments
from ssdistill.data.order import shuffled
from ssdistill.data.originals import Originals
from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import SPLITS, Source, Unlabeled
from ssdistill.data.store import WAITING, Store, open_store, warn_of
from ssdistill.data.store_check import verify_index
from ssdistill.data.store_places import has_store, provisional, size_name
from ssdistill.data.store_writer import notices_of, refuse_bad
from ssdistill.data.weighting import weigh
from ssdistill.data.window import window_of
from ssdistill.errors import UserError, shown
from ssdistill.files import locked_by, write_atomically
from ssdistill.settings import Size, as_size, height_width
from ssdistill.settings.registry import SOURCES

log = logging.getLogger(__name__)

STORED_UP_TO = 96
"""Side of images, in pixels, up to which ``data.pixels=auto`` stores them: a square of that side
is smaller than the file it comes from, and is read five times faster than the file is decoded."""
SAMPLED = 4096
"""Images that the statistics of originals are measured on, evenly spread by their number."""
PIECE, PIECE_BYTES = 256, 256 << 20
STATISTICS = "statistics-{size}-{fingerprint}.json"


def open_source(settings: StoreSettings) -> Source:
    """Open the source of the settings, without its labels if they say so.

    Raises:
        UserError: whatever the source raises.
    """
    source = SOURCES.build(settings)
    source.any_bands = settings.channels is not None
    source.reading = settings.reading
    return Unlabeled(source) if settings.labels == "none" else source


def open_stores(
    source: Source,
    settings: StoreSettings,
    image_size: Size,
    root: Path,
    workers: int | None = None,
) -> dict[str, ImageSet]:
    """Open the training and test images, decoding or indexing them if necessary.

    If a source has no test images, its training images take their place.

    Args:
        image_size: side of a stored image, and of the central squares of originals.
        workers: threads that decode originals; None for one a core.

    Raises:
        UserError: whatever :func:`ssdistill.data.store.open_store` raises, or arrays whose
            originals are wanted.
    """
    opened: dict[str, ImageSet] = {}
    kept = None if settings.verify else Path(root)
    source.reading = replace(source.reading, folder=kept, keeps=True)
    originals = keeps_originals(source, settings, image_size, root)
    for split in splits_of(source):
        if originals:
            opened[split] = open_originals(source, split, settings, image_size, root, workers)
        else:
            opened[split] = open_stored(source, split, settings, image_size, root)
    weigh(opened["train"])
    return {"test": opened["train"], **opened}


def splits_of(source: Source) -> list[str]:
    """Return the splits that have images, the training images first."""
    return [split for split in SPLITS if split == "train" or source.has_test]


def open_stored(
    source: Source, split: str, settings: StoreSettings, image_size: Size, root: Path
) -> Store:
    """Open the store of a split as the settings describe it; make it if it is missing."""
    return open_store(
        source,
        split,
        image_size,
        root,
        settings.max_bad,
        window=settings.window,
        max_pixels=settings.max_pixels,
        form=settings.form,
        verify=settings.verify,
    )


def keeps_originals(source: Source, settings: StoreSettings, image_size: Size, root: Path) -> bool:
    """Whether views are cut from originals, rather than from stored squares.

    Raises:
        UserError: arrays whose originals are wanted.
    """
    encoded = source.split("train").encoded() is not None
    if settings.pixels == "original" and not encoded:
        raise UserError(
            f"data.pixels=original: data.kind={source.kind} holds arrays, not encoded images; set "
            "data.pixels=auto"
        )
    if settings.pixels != "auto":
        return settings.pixels == "original"
    if not encoded or max(height_width(image_size)) <= STORED_UP_TO:
        return False
    return not has_store(source, "train", image_size, root, settings)


def open_originals(
    source: Source,
    split: str,
    settings: StoreSettings,
    image_size: Size,
    root: Path,
    workers: int | None = None,
) -> Originals:
    """Open a split as it is; index its images below ``root`` where they are not known yet.

    Raises:
        UserError: more unreadable images than ``settings.max_bad``, or none readable.
    """
    raw, image_size = source.split(split).encoded(), as_size(*height_width(image_size))
    folder = index_folder(source, split, settings, root)
    # Images are decoded as long as the process lives, in threads that share this limit.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, settings.max_pixels)
    with (
        plain_disk_errors(root),
        pixel_limit(settings.max_pixels),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(log.warning, WAITING, folder)
        with locked_by(Path(f"{folder}.lock"), on_wait=waiting, patience=1):
            bands = settings.channels is not None
            if settings.verify:
                verify_index(raw, folder, bands=bands)
            index = ImageIndex(raw, folder, bands=bands)
            holding = _holding(source, split, settings, root, index)
        more = f" {json.dumps(holding.key)}" if holding.key else ""
        text = f"originals {index.content()} {image_size} {holding.window}{more}"
        text += "".join(f" {part}" for part in source.reading.key)
        originals = Originals(
            source,
            split,
            raw,
            index,
            image_size,
            holding=holding,
            fingerprint=hashlib.sha256(text.encode()).hexdigest(),
            max_bad=settings.max_bad,
            workers=workers,
        )
        refuse_bad(raw.title, originals.bad, len(index), settings.max_bad)
        if not len(originals):
            name, reason = originals.bad[0]
            raise UserError(
                f"{shown(raw.title)} has no readable image, first {shown(name)} ({reason}); "
                "replace them"
            )
        _measure(originals, folder, settings.window == "auto")
    warn_of(originals, raw.title, settings.max_bad, settings.window)
    return originals


def _holding(
    source: Source, split: str, settings: StoreSettings, root: Path, index: ImageIndex
) -> Holding:
    """Return how a split's originals are held; decode what that depends on, if it is not known."""
    form = settings.form
    if form.channels is not None:
        return Holding(form, scale_of(source, form, settings.window, root))
    if not index.deep_rows:
        return Holding(form)
    return Holding(form, window=window_of(source, split, settings.window, root))


def index_folder(source: Source, split: str, settings: StoreSettings, root: Path) -> Path:
    """Return where the index of a split's originals is kept, and what was measured of them."""
    parts = [source.kind, source.settings, split, settings.max_pixels]
    if settings.channels is not None:
        parts.append("bands")
    parts += [settings.frames] if settings.frames != "first" else []
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return Path(root) / f"{source.kind}-{split}-index-{key[:12]}"


def are_known(source: Source, split: str, settings: StoreSettings, size: Size, root: Path) -> bool:
    """Whether opening a split's originals with central squares of ``size`` would decode none."""
    folder = index_folder(source, split, settings, root)
    if provisional(source, settings, root) is None:
        return False
    with suppress(OSError):
        measured = any(folder.glob(STATISTICS.format(size=size_name(size), fingerprint="*")))
        return measured and is_current(source.split(split).encoded(), folder)
    return False


def _measure(originals: Originals, folder: Path, automatic: bool) -> None:
    """Set mean, standard deviation and notices of originals, from a sample of their squares."""
    squares, digest = originals.stored, originals.fingerprint[:16]
    size = as_size(*squares.shape[1:3])
    path = folder / STATISTICS.format(size=size_name(size), fingerprint=digest)
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads(path.read_text())
        if found.pop("sha256") != _sha256(found):
            raise ValueError("the statistics were changed")
        originals.mean, originals.std = tuple(found["mean"]), tuple(found["std"])
        originals.notices = [str(notice) for notice in found["notices"]]
        return
    count = min(SAMPLED, len(originals))
    position_S = np.sort(shuffled(np.arange(count), len(originals), 0, 0))
    moments = Moments(squares.shape[3], squares.dtype)
    piece = max(1, min(PIECE, PIECE_BYTES // squares[:1].nbytes))
    for start in range(0, count, piece):
        moments.add(squares[position_S[start : start + piece]])
    mean, std = moments.mean_std()
    originals.mean, originals.std = tuple(mean), tuple(s or 1 / 255 for s in std)
    originals.notices = notices_of(
        originals.holding, moments, np.zeros(1), originals.raw.notes(), count
    )
    content = {"mean": mean, "std": originals.std, "notices": originals.notices}
    with suppress(OSError, UserError):
        write_atomically(path, json.dumps(content | {"sha256": _sha256(content)}) + "\n")


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
