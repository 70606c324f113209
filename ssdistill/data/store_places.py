"""Find the folders of stores: one for each split and form of its images."""

import hashlib
import json
from pathlib import Path

from ssdistill.data.channel_scale import known_scale
from ssdistill.data.held_pixels import Holding
from ssdistill.data.settings import MAX_PIXELS, StoreSettings
from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.window import cached_windows
from ssdistill.settings import Size, as_size, height_width, size_text

FORMAT = 1
"""Part of every store's key: increase it whenever the same images are stored differently."""
META = "store.json"


def folder_of(
    source: Source, raw: RawSplit, split: str, image_size: Size, root: Path, more: list
) -> Path:
    """Return the folder of a split's store.

    Args:
        more: further parts of the key, which is that of 8-bit RGB without any.
    """
    image_size = as_size(*height_width(image_size))
    parts = [FORMAT, source.kind, source.settings, split, image_size, raw.identity(), *more]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return root / f"{source.kind}-{split}-{size_name(image_size)}-{key[:12]}"


def size_name(size: Size) -> str:
    """Return a size as in file names: ``32`` or ``32x64``."""
    return str(size) if isinstance(size, int) else size_text(size)


def limits_of(source: Source, max_pixels: int) -> list:
    """Return what the limit of pixels and the reading add to a store's key; nothing by default."""
    limits = [] if max_pixels == MAX_PIXELS else [["max_pixels", max_pixels]]
    return [*limits, *source.reading.key]


def has_store(
    source: Source, split: str, image_size: Size, root: Path, settings: StoreSettings
) -> bool:
    """Whether a split of 8-bit images is already stored at this size.

    With chosen channels, also one of deeper images, if their scale is cached; decodes no image.
    """
    raw, root = source.split(split), Path(root)
    more = [*limits_of(source, settings.max_pixels), *settings.form.key]
    if settings.channels is not None:
        scale = known_scale(source, settings.form, settings.window, root)
        if scale is None:
            return False
        more += scale.key
    return (folder_of(source, raw, split, image_size, root, more) / META).exists()


def find_store(
    source: Source, split: str, image_size: Size, root: Path, settings: StoreSettings
) -> bool:
    """Whether a split is already stored as configured, at any bit depth; decodes no image."""
    raw, root = source.split(split), Path(root)
    if has_store(source, split, image_size, root, settings):
        return True
    if settings.channels is not None:
        return False
    limits = [*limits_of(source, settings.max_pixels), *settings.form.key]
    windows = cached_windows(source, split, settings.window, root)
    keys = ([*limits, ["window", *window]] for window in windows)
    return any(
        (folder_of(source, raw, split, image_size, root, key) / META).exists() for key in keys
    )


def provisional(source: Source, settings: StoreSettings, root: Path) -> Holding | None:
    """Return how images will be held, without a window of RGB; None if one must be decoded."""
    if settings.channels is None:
        return Holding(settings.form)
    scale = known_scale(source, settings.form, settings.window, Path(root))
    return scale and Holding(settings.form, scale)
