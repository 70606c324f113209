"""Open images without their labels, to embed them."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.image_set import ImageSet
from ssdistill.data.opening import open_source, open_stores, splits_of
from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import SPLITS
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.images import Shown, as_pixels, size_of, source_settings
from ssdistill.evaluate.subject import LabeledImages
from ssdistill.files import user_path
from ssdistill.settings import Size

log = logging.getLogger(__name__)
ALL = "all"


@dataclass(frozen=True, eq=False)
class Unlabeled:
    """Images whose labels are never read.

    Attributes:
        sets: the images by split, those of ``train`` first; an array has one split, ``all``.
        shown: the same, as an external encoder must know them.
    """

    sets: dict[str, ImageSet | np.ndarray]
    shown: Shown


def open_unlabeled(
    data: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    split: str = ALL,
    sizes: Iterable[Size] = (),
    root: str | Path = "runs",
) -> Unlabeled:
    """Open images, whatever :func:`ssdistill.evaluate.opening.images.open_images` finds there.

    Args:
        data: kind of a source, a path, a mapping of a source's settings or these settings, an
            array (N, H, W, C), a map-style dataset, or a list of paths.
        overrides: settings over those that ``data`` says.
        split: ``train``, ``test`` or ``all``.
        sizes: of the images that the encoder will be given.
        root: runs folder; decoded images are kept in ``data`` below it.

    Raises:
        UserError: no such source, file or split, or an array that holds no images.
    """
    if split not in (*SPLITS, ALL):
        raise UserError(f"split={split}: choose one of {', '.join((*SPLITS, ALL))}")
    if hasattr(data, "dtype") or _are_arrays(data):
        return _of_array(data, overrides, split)
    if isinstance(data, StoreSettings):
        settings = data
    else:
        # Nothing of what a program holds is held out; its order remains.
        held = isinstance(data, str | Path | Mapping)
        settings = source_settings(
            data, {**({} if held else {"test_fraction": 0}), **(overrides or {})}
        )
    settings = settings.model_copy(update={"labels": "none"})
    source = open_source(settings)
    names = splits_of(source)
    wanted = names if split == ALL else [split]
    if split not in (*names, ALL):
        raise UserError(f"split={split}: there are no test images; choose split=all")
    size = size_of(source, settings, sizes)
    stores = open_stores(source, settings, size, user_path(root) / "data")
    for warning in source.warnings(labels=False):
        log.warning("%s", warning)
    shown = Shown(stores["train"], stores["test"], False, source.description)
    return Unlabeled({name: stores[name] for name in wanted}, shown)


def _are_arrays(data: Any) -> bool:
    """Whether data are a list of images of one size, rather than of paths."""
    return isinstance(data, list) and all(hasattr(item, "shape") for item in data)


def _of_array(data: Any, overrides: Mapping[str, Any] | None, split: str) -> Unlabeled:
    if overrides:
        named = ", ".join(map(str, overrides))
        raise UserError(f"data_settings ({named}) apply to a data source, not to an array")
    if split != ALL:
        raise UserError(f"split={split}: an array has no splits; omit it, and pass a part of it")
    images = LabeledImages(as_pixels(data, "the"), None)
    shown = Shown(images, images, False, f"an array of {len(images)} images")
    return Unlabeled({ALL: images.images}, shown)
