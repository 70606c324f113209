"""Open the source and the images that a config describes."""

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
from ssdistill.data.disk_space import report_disk_errors
from ssdistill.data.held_pixels import Holding
from ssdistill.data.image_index import ImageIndex, is_current
from ssdistill.data.image_set import ImageSet
from ssdistill.data.moments import Moments
from ssdistill.data.order import shuffled
from ssdistill.data.originals import Originals
from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import SPLITS, Source, Unlabeled
from ssdistill.data.store import WAITING, Store, open_store, warn_about
from ssdistill.data.store_check import verify_index
from ssdistill.data.store_places import has_store, provisional, size_name
from ssdistill.data.store_writer import check_bad_fraction, notices_of
from ssdistill.data.weighting import weigh
from ssdistill.data.window import window_of
from ssdistill.errors import UserError, shown
from ssdistill.files import locked_by, write_atomically
from ssdistill.settings import Size, as_size, height_width
from ssdistill.settings.registry import SOURCES

log = logging.getLogger(__name__)

STORED_UP_TO = 96
"""Largest ``image_size`` at which ``data.pixels=auto`` stores squares: these are smaller than the
files they come from, and are read five times faster than the files are decoded."""
SAMPLED = 4096
"""Images on which statistics of originals are measured, a random sample."""
PIECE, PIECE_BYTES = 256, 256 << 20
STATISTICS = "statistics-{size}-{fingerprint}.json"


def open_source(settings: StoreSettings) -> Source:
    """Open the source of the settings; ``data.labels=none`` hides its labels.

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
    """Open the training and test images; decode or index them if necessary.

    If a source has no test images, its training images are used instead.

    Args:
        image_size: side of stored images, and of the central squares of originals, in pixels.
        workers: threads that decode originals; None for one per core.

    Raises:
        UserError: whatever :func:`ssdistill.data.store.open_store` raises, or
            ``data.pixels=original`` for a source of arrays.
    """
    opened: dict[str, ImageSet] = {}
    folder = None if settings.verify else Path(root)
    source.reading = replace(source.reading, folder=folder, keeps=True)
    originals = uses_originals(source, settings, image_size, root)
    for split in splits_of(source):
        if originals:
            opened[split] = open_originals(source, split, settings, image_size, root, workers)
        else:
            opened[split] = open_stored(source, split, settings, image_size, root)
    weigh(opened["train"])
    return {"test": opened["train"], **opened}


def splits_of(source: Source) -> list[str]:
    """Return the splits that have images, starting with the training split."""
    return [split for split in SPLITS if split == "train" or source.has_test]


def open_stored(
    source: Source, split: str, settings: StoreSettings, image_size: Size, root: Path
) -> Store:
    """Open the store of a split, with its settings; create it if missing."""
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


def uses_originals(source: Source, settings: StoreSettings, image_size: Size, root: Path) -> bool:
    """Whether views are cropped from originals rather than from stored squares.

    Raises:
        UserError: ``data.pixels=original`` for a source of arrays.
    """
    encoded = source.split("train").encoded() is not None
    if settings.pixels == "original" and not encoded:
        raise UserError(
            f"data.pixels=original: data.kind={source.kind} has arrays, not encoded images; set "
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
    """Open a split's original images; create or update their index below ``root``.

    Raises:
        UserError: too many unreadable images (``settings.max_bad``), or no readable image.
    """
    raw, image_size = source.split(split).encoded(), as_size(*height_width(image_size))
    folder = index_folder(source, split, settings, root)
    # Threads decode images throughout the life of the process and share this limit.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, settings.max_pixels)
    with (
        report_disk_errors(root),
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
        check_bad_fraction(raw.title, originals.bad, len(index), settings.max_bad)
        if not len(originals):
            name, reason = originals.bad[0]
            raise UserError(
                f"{shown(raw.title)}: no image can be read (first: {shown(name)}: {reason}); "
                "replace them"
            )
        _set_statistics(originals, folder, settings.window == "auto")
    warn_about(originals, raw.title, settings.max_bad, settings.window)
    return originals


def _holding(
    source: Source, split: str, settings: StoreSettings, root: Path, index: ImageIndex
) -> Holding:
    """Return how a split's originals are held; measure windows and scales that are not cached."""
    form = settings.form
    if form.channels is not None:
        return Holding(form, scale_of(source, form, settings.window, root))
    if not index.deep_rows:
        return Holding(form)
    return Holding(form, window=window_of(source, split, settings.window, root))


def index_folder(source: Source, split: str, settings: StoreSettings, root: Path) -> Path:
    """Return the folder of the index and the statistics of a split's originals."""
    parts = [source.kind, source.settings, split, settings.max_pixels]
    if settings.channels is not None:
        parts.append("bands")
    parts += [settings.frames] if settings.frames != "first" else []
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return Path(root) / f"{source.kind}-{split}-index-{key[:12]}"


def is_indexed(source: Source, split: str, settings: StoreSettings, size: Size, root: Path) -> bool:
    """Whether a split's originals, with squares of ``size``, can be opened without decoding."""
    folder = index_folder(source, split, settings, root)
    if provisional(source, settings, root) is None:
        return False
    with suppress(OSError):
        measured = any(folder.glob(STATISTICS.format(size=size_name(size), fingerprint="*")))
        return measured and is_current(source.split(split).encoded(), folder)
    return False


def _set_statistics(originals: Originals, folder: Path, automatic: bool) -> None:
    """Set mean, std and notices of originals; measure them on a sample unless they are cached."""
    squares, digest = originals.stored, originals.fingerprint[:16]
    size = as_size(*squares.shape[1:3])
    path = folder / STATISTICS.format(size=size_name(size), fingerprint=digest)
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        cached = json.loads(path.read_text())
        if cached.pop("sha256") != _sha256(cached):
            raise ValueError("the statistics do not match their hash")
        originals.mean, originals.std = tuple(cached["mean"]), tuple(cached["std"])
        originals.notices = [str(notice) for notice in cached["notices"]]
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
