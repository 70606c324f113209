"""The pictures an encoder is asked about, from whatever names them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.folder import Folder
from ssdistill.data.npz import Npz
from ssdistill.data.store import Store, open_store
from ssdistill.errors import UserError, nearest
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.registry import SOURCES
from ssdistill.teachers import Pictures

SAMPLED = 10_000
"""Training images whose statistics are taken for those of all, where nobody has counted."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Training and test pictures.

    Attributes:
        train, test: ``images`` (N, H, W, 3) uint8 and ``labels`` of the two splits.
        labeled: whether both have labels.
        description: one phrase.
        settings: of the data source, where there was one.
    """

    train: Any
    test: Any
    labeled: bool
    description: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """Side of the test pictures, in pixels."""
        return min(self.test.images.shape[1:3])

    @cached_property
    def facts(self) -> Pictures:
        """What a teacher from elsewhere must know of them."""
        if isinstance(self.train, Store):
            return Pictures(self.image_size, self.train.mean, self.train.std)
        step = -(-len(self.train.images) // SAMPLED)
        pixels = np.asarray(self.train.images[::step], dtype=np.float64) / 255
        mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
        return Pictures(self.image_size, tuple(mean.tolist()), tuple(std.tolist()))


def open_pictures(
    data: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    sizes: Iterable[int] = (),
    root: str | Path = "runs",
) -> Shown:
    """Training and test pictures, decoded the first time they are asked for.

    Args:
        data: kind of a data source (``ssdistill list sources``), an ``.npz`` file, a folder, a
            mapping of a source's settings, ``((x_train, y_train), (x_test, y_test))`` of
            arrays, or a :class:`Subject` or :class:`Shown`, whose pictures are taken.
        overrides: settings over those that ``data`` says.
        sizes: sides of the images that encoders will be given; those of a folder, which have
            no size of their own, are stored at the largest.
        root: runs folder; decoded pictures are kept in ``data`` below it.

    Raises:
        UserError: no such source or file, settings that it has not, or arrays that are no
            pictures.
    """
    if isinstance(data, Shown):
        return data
    if isinstance(data, Subject):
        labeled = all(_labels(split) is not None for split in (data.train, data.test))
        return Shown(data.train, data.test, labeled, "pictures of a subject")
    if isinstance(data, Sequence) and not isinstance(data, str):
        return _of_arrays(data)
    settings = _source_settings(data, overrides or {})
    source = SOURCES.build(settings)
    size = settings.image_size or source.default_image_size
    if isinstance(source, Folder) and settings.image_size is None:
        size = max(sizes, default=size)
    splits = [
        open_store(source, name, size, Path(root) / "data", settings.max_bad)
        for name in ("train", "test")
    ]
    plain = settings.model_dump(mode="json", exclude_defaults=True) | {"kind": settings.kind}
    return Shown(*splits, source.has_labels, source.description, plain)


def _source_settings(data: Any, overrides: Mapping[str, Any]) -> Any:
    from ssdistill.config import validated

    if isinstance(data, Mapping):
        wanted = dict(data)
    elif not isinstance(data, str | Path):
        raise UserError(f"data: a kind, a path, settings or two pairs of arrays, not {data!r}")
    elif str(data) in SOURCES.classes:
        wanted = {"kind": str(data)}
    elif Path(data).is_dir():
        wanted = {"kind": Folder.kind, "path": str(data)}
    elif Path(data).is_file() or Path(data).suffix == ".npz":
        wanted = {"kind": Npz.kind, "path": str(data)}
    else:
        known = ", ".join(SOURCES.classes)
        hint = nearest(str(data), SOURCES.classes)
        raise UserError(f"data: '{data}' is no file or folder, nor one of {known}{hint}")
    wanted |= overrides
    SOURCES[wanted.get("kind", "")]  # an unknown kind is refused with the nearest one
    return validated(SOURCES.schema(wanted["kind"]), wanted, "data")


def _of_arrays(pairs: Sequence[Any]) -> Shown:
    if len(pairs) != 2 or any(len(pair) not in (1, 2) for pair in pairs):
        raise UserError("data: arrays come as ((x_train, y_train), (x_test, y_test))")
    train, test = (
        LabeledImages(_pixels(pair[0], name), pair[1] if len(pair) == 2 else None)
        for pair, name in zip(pairs, ("training", "test"), strict=True)
    )
    labeled = train.labels is not None and test.labels is not None
    return Shown(train, test, labeled, f"arrays of {len(train)} training, {len(test)} test images")


def _pixels(images: Any, name: str) -> np.ndarray:
    found = np.asarray(images)
    if found.ndim == 3:
        found = np.broadcast_to(found[..., None], (*found.shape, 3))
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3 or not len(found):
        raise UserError(
            f"data: {name} images must be uint8 (N, H, W, 3) or (N, H, W) and some, "
            f"got {found.dtype} {found.shape}"
        )
    return found


def _labels(split: Any) -> Any:
    try:
        return split.labels
    except UserError:
        return None
