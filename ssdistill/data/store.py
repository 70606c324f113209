"""Images decoded once into one memory-mapped array of squares.

Each image is cropped to its central square (a wide one loses its sides) and resized. Squares of
one size can be batched, and evaluation uses the central crop anyway. Labels are not stored:
``Store.labels`` reads them from the source.

Opening a store verifies its pixels against block checksums: 0.25 s per gigabyte on one core if
cached in memory, at disk speed otherwise.
"""

import json
import logging
import os
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from ssdistill.data.channel_scale import scale_of
from ssdistill.data.checksums import BLOCK_BYTES, block_checksums
from ssdistill.data.decode import pixel_limit
from ssdistill.data.deep_pixels import Window
from ssdistill.data.disk_space import check_space, report_disk_errors
from ssdistill.data.form import RGB, Form
from ssdistill.data.held_pixels import Holding
from ssdistill.data.image_set import ImageSet
from ssdistill.data.resizing import central
from ssdistill.data.settings import MAX_PIXELS
from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.store_check import replace_if_different
from ssdistill.data.store_places import META, folder_of, limits_of
from ssdistill.data.store_writer import check_bad_fraction, fingerprint_of, write_images
from ssdistill.data.window import WindowSetting, window_of
from ssdistill.errors import UserError, one_line, shown
from ssdistill.files import locked_by, write_atomically
from ssdistill.settings import Size, as_size, height_width

log = logging.getLogger(__name__)

LARGEST_JSON = 1 << 30
"""Bytes; metadata list the name of every image, of which there may be millions."""
WAITING = "waiting for another process to create %s"
IMAGES, CHECKSUMS = "images.npy", "checksums.json"


class Store(ImageSet):
    """One split's images, decoded and stored at one size.

    Attributes:
        images: (N, H, W, C) uint8, or float32 for chosen channels of more than 8 bits, read-only,
            mapped from disk: the part of ``stored`` that networks see.
        fingerprint: sha256 (hex) over pixels, names, size, channels and windows.
        folder: the folder of the store.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        split: str,
        form: Form = RGB,
        view_size: Size | None = None,
    ):
        self.folder, self.source, self.split = folder, source, split
        self.form, self.channel_names = form, form.names
        with _report_damage(folder):
            _check_files(folder)
            meta = json.loads((folder / META).read_text())
            _verify(folder, meta)
            self._stored: np.ndarray = np.load(folder / IMAGES, mmap_mode="r")
            self.images: np.ndarray = self._stored
            if view_size is not None and height_width(view_size) != self._stored.shape[1:3]:
                self.images = central(self._stored, view_size)
            self.fingerprint: str = meta["fingerprint"]
            self.bad: list[tuple[str, str]] = [(name, reason) for name, reason in meta["bad"]]
            self.mean: tuple[float, ...] = tuple(meta["mean"])
            self.std: tuple[float, ...] = tuple(s or 1 / 255 for s in meta["std"])
            self.window: Window | None = meta.get("window") and tuple(meta["window"])
            self.windows = windows_in(meta)
            self.notices: list[str] = meta.get("notices", [])
            self.bad_rows: list[int] = meta["bad_rows"]

    @property
    def place(self) -> str:
        return str(self.folder)

    @property
    def stored(self) -> np.ndarray:
        return self._stored

    @property
    def names(self) -> list[str]:
        """Names of the N images in the source; read from disk on every access."""
        return json.loads((self.folder / META).read_text())["names"]


def windows_in(meta: dict) -> tuple[Window, ...] | None:
    """Return the window of each channel from a store's metadata; None if all images have 8 bits."""
    if meta.get("windows"):
        return tuple((float(low), float(high)) for low, high in meta["windows"])
    return meta.get("window") and (tuple(meta["window"]),) * 3


@contextmanager
def _report_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError
    ) as error:  # fmt: skip
        reason = f"missing {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(
            f"corrupt image store {folder} ({reason}); delete the folder to rebuild it"
        ) from error


def _check_files(folder: Path) -> None:
    """Check that all files are regular, since pipes would block and devices never end.

    Raises:
        OSError, ValueError: a file is missing, not regular or too large.
    """
    for name in (META, IMAGES, CHECKSUMS):
        path = folder / name
        if name == CHECKSUMS and not os.path.lexists(path):
            continue
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a regular file")
        if name != IMAGES and status.st_size > LARGEST_JSON:
            raise ValueError(f"{name} is too large")


def _verify(folder: Path, meta: dict) -> None:
    """Verify the checksums of a store's files; write them if there are none yet.

    Raises:
        ValueError: a checksum differs; names the file and the first differing block.
    """
    sums = {name: block_checksums(folder / name) for name in (META, IMAGES)}
    if not (folder / CHECKSUMS).exists():
        # Written by version 0.1, which stored a fingerprint only.
        images_NHWC = np.load(folder / IMAGES, mmap_mode="r")
        if fingerprint_of(images_NHWC, meta["names"]) != meta["fingerprint"]:
            raise ValueError("the pixels do not match the fingerprint")
        with suppress(UserError, OSError):
            write_atomically(folder / CHECKSUMS, json.dumps(sums) + "\n")
        return
    expected = json.loads((folder / CHECKSUMS).read_text())
    for name, blocks in sums.items():
        if blocks != expected[name]:
            first = next(
                (i for i, pair in enumerate(zip(blocks, expected[name])) if pair[0] != pair[1]),  # noqa: B905
                min(len(blocks), len(expected[name])),
            )
            at = f"from byte {first * BLOCK_BYTES} on" if first else "in its first block"
            raise ValueError(f"{name} does not match its checksum {at}")


def open_store(
    source: Source,
    split: str,
    image_size: Size,
    root: Path,
    max_bad: float = 0.05,
    *,
    window: WindowSetting = "auto",
    max_pixels: int = MAX_PIXELS,
    form: Form = RGB,
    verify: bool = False,
) -> Store:
    """Open the store of a split; create it below ``root`` if missing.

    Its key is the kind and settings of the source, the identity of its images, the size, the
    channels and, for images of more than 8 bits, the window. Concurrent processes wait for the
    one that creates the store, and a store appears only when complete. Unreadable images are
    skipped and reported in one warning.

    Args:
        split: ``"train"`` or ``"test"``.
        image_size: size of the stored images in pixels.
        max_bad: largest fraction of unreadable images.
        window: values that map to black and white, for images of more than 8 bits; see
            :class:`ssdistill.data.settings.StoreSettings`.
        max_pixels: images with more pixels count as unreadable.
        form: channels and shape.
        verify: decode all images again, and replace the store if its pixels differ.

    Raises:
        UserError: too many unreadable images (``max_bad``), no readable image, a full disk, or
            a folder without write permission; whatever the source raises.
    """
    raw, root = source.split(split), Path(root)
    image_size = as_size(*height_width(image_size))
    seen = form.seen(image_size)
    with pixel_limit(max_pixels), warnings.catch_warnings():
        # Damaged EXIF, odd palettes: the image is either read or listed as bad.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        holding, folder = _held(source, split, image_size, root, window, max_pixels, form)
        if verify or not (folder / META).exists():
            with report_disk_errors(root):
                folder.parent.mkdir(parents=True, exist_ok=True)
                waiting = partial(log.warning, WAITING, folder)
                with locked_by(Path(f"{folder}.lock"), on_wait=waiting, patience=1):
                    if not (folder / META).exists():
                        check_space(folder.parent, raw, image_size, holding.pixel_bytes())
                        _make(folder, raw, image_size, max_bad, holding, window == "auto")
                    elif verify:
                        again = folder.with_name(f"{folder.name}.again")
                        check_space(folder.parent, raw, image_size, holding.pixel_bytes())
                        _make(again, raw, image_size, max_bad, holding, window == "auto")
                        replace_if_different(folder, again, META, raw.title)
    store = Store(folder, source, split, form, seen)
    warn_about(store, raw.title, max_bad, window)
    return store


def _held(
    source: Source,
    split: str,
    image_size: Size,
    root: Path,
    window: WindowSetting,
    max_pixels: int,
    form: Form,
) -> tuple[Holding, Path]:
    """Return how a split's images are held, and the folder of their store."""
    raw, limits = source.split(split), limits_of(source, max_pixels)
    if form.channels is not None:
        holding = Holding(form, scale_of(source, form, window, root))
        return holding, folder_of(source, raw, split, image_size, root, [*limits, *holding.key])
    limits += form.key
    folder = folder_of(source, raw, split, image_size, root, limits)
    values = None
    # The window is part of the store's key.
    if not (folder / CHECKSUMS).exists():
        values = window_of(source, split, window, root)
    if values:
        limits = [*limits, ["window", *values]]
        folder = folder_of(source, raw, split, image_size, root, limits)
    return Holding(form, window=values), folder


def warn_about(store: ImageSet, title: str, max_bad: float, window: WindowSetting) -> None:
    """Warn about skipped images, unused settings and odd pixels; UserError above ``max_bad``."""
    total = len(store) + len(store.bad)
    check_bad_fraction(title, store.bad, total, max_bad)
    title = shown(title)
    if store.bad:
        name, reason = store.bad[0]
        counts = f"skipping {len(store.bad)} of {total} images that cannot be read"
        log.warning("%s: %s (first: %s: %s)", title, counts, shown(name), reason)
    if window != "auto" and store.windows is None:
        value = window if window == "full" else list(window)
        log.warning("%s: ignoring data.window=%s, since all images have 8 bits", title, value)
    for notice in store.notices:
        log.warning("%s: %s", title, notice)


def _make(
    folder: Path,
    raw: RawSplit,
    image_size: Size,
    max_bad: float,
    holding: Holding,
    automatic: bool,
) -> None:
    """Fill ``<folder>.partial`` and rename it; the caller must hold the lock."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with open(partial / IMAGES, "wb") as file:
            meta = write_images(file, raw, image_size, max_bad, holding, automatic)
            file.flush()
            os.fsync(file.fileno())
        (partial / META).write_text(json.dumps(meta))
        sums = {name: block_checksums(partial / name) for name in (META, IMAGES)}
        (partial / CHECKSUMS).write_text(json.dumps(sums) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # without its metadata it is not a store
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
