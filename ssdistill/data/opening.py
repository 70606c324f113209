"""Open the source and the two stores that the data settings of a config describe."""

from pathlib import Path

from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import SPLITS, Source, Unlabeled
from ssdistill.data.store import Store, open_store
from ssdistill.settings.registry import SOURCES


def open_source(settings: StoreSettings) -> Source:
    """Open the source of the settings, without its labels if they say so.

    Raises:
        UserError: whatever the source raises.
    """
    source = SOURCES.build(settings)
    return Unlabeled(source) if settings.labels == "none" else source


def open_stores(
    source: Source, settings: StoreSettings, image_size: int, root: Path
) -> dict[str, Store]:
    """Open the training and test images, decoding them if necessary.

    If a source has no test images, its training images take their place.

    Raises:
        UserError: whatever :func:`ssdistill.data.store.open_store` raises.
    """
    stores = {
        split: open_store(
            source,
            split,
            image_size,
            root,
            settings.max_bad,
            window=settings.window,
            max_pixels=settings.max_pixels,
        )
        for split in SPLITS
        if split == "train" or source.has_test
    }
    return {"test": stores["train"], **stores}
