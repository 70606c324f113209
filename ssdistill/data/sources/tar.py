"""Tar archives of images (WebDataset shards)."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ssdistill.data.bad_image import BadImage
from ssdistill.data.held_out import fraction_of
from ssdistill.data.packing.checksums import verify
from ssdistill.data.retry import retried
from ssdistill.data.shards.index import ShardIndex
from ssdistill.data.shards.labels import LabelTexts, label_values
from ssdistill.data.shards.patterns import expand
from ssdistill.data.shards.split import Rows, TarSplit, held_out_rows
from ssdistill.data.shards.storage import REMOTE, Disk, Shard, Storage, storage_of
from ssdistill.data.split_names import WORDS, split_of
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import NO_FILE, UserError, shortened, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)

Paths = str | tuple[str, ...]
OTHER_LABELS = (".cls", ".json", ".txt")


@dataclass(frozen=True)
class Layout:
    """The splits of the shards; ``ignored`` names those in neither."""

    train: TarSplit
    test: TarSplit | None
    ignored: tuple[str, ...]


class Tar(Source):
    """Tar archives as written by WebDataset, on local disks or remote storage.

    ``path`` names shards: a file, a folder, ``shards/train-{000..012}.tar``, ``shards/*.tar``, or
    a URL such as ``s3://bucket/train-{000..012}.tar`` (``pip install 'ssdistill[remote]'``, and
    the library that fsspec requires for it). Without ``test``, shards named ``train`` and ``test``
    or ``val`` (or in folders of these names) are used as splits; otherwise test images are held
    out by a hash of their name. Headers are read once, into an index next to the shards, which
    allows random access to images and thus full shuffling. Archives must not be compressed.

    Images are members with a usual suffix (``.jpg``, ``.png``, ``.webp``, …), or ``.npy`` files of
    (H, W) numbers or (H, W, 3) uint8; with ``data.channels``, ``.dcm`` files, too. The label of an
    image is in the ``.cls`` file of the same name: a number, or a class name. Images may have
    several labels, or none: numbers in a ``.cls`` file, or a list in a ``.json`` file. Links,
    devices, hidden members and names that are absolute or contain ``..`` are ignored. By default
    images are stored as squares of 64 pixels; ``data.image_size`` sets another size.

    Args:
        path: the shards, or a list of such names.
        test: the shards of the test images, likewise.
        test_fraction: fraction to hold out without shards of test images; by default 0.1. 0 trains
            on all images.
        label: suffix of the labels: ``cls``, ``txt`` or ``json``; ``json.FIELD`` sets the field of
            the labels (by default ``label``).
        verify: verify the archives against ``checksums.sha256`` in their folder, as written by
            ``ssdistill data pack``, whenever they are opened.
    """

    kind = "tar"
    default_image_size = 64

    def __init__(
        self,
        *,
        path: Paths,
        test: Paths | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
        label: Annotated[str, Field(pattern=r"^(cls|txt|json(\.[^.]+)*)$")] = "cls",
        verify: bool = False,
    ):
        self.verify = verify
        self.path, self.test, self.test_fraction, self.label = path, test, test_fraction, label
        self._label_texts: dict[str, LabelTexts] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "verify"}

    @cached_property
    def _layout(self) -> Layout:
        storage, places = _find_shards(self.path, "path")
        ignored: tuple[str, ...] = ()
        if self.test is not None:
            test_storage, tests = _find_shards(self.test, "test")
            if both := set(places) & set(tests):
                raise UserError(
                    f"data.test={shortened(self.test)}: {shown(min(both))} is also in data.path; "
                    "list each shard once"
                )
        else:
            test_storage, (places, tests, ignored) = storage, _by_name(places)
        if self.verify:
            _verify((*places, *tests))
        suffix = f".{self.label.split('.')[0]}"
        index = ShardIndex(storage, _shards(storage, places), suffix, self.any_bands)
        if not len(index):
            raise UserError(f"data.path={self._shown}: {_no_images(index)}")
        if tests:
            held_out = np.zeros(0, dtype=np.int64)
            test_index = ShardIndex(
                test_storage, _shards(test_storage, tests), suffix, self.any_bands
            )
            test = self._part("test", test_index, Rows(len(test_index), held_out, "train"))
        else:
            # Whether there are labels is not known yet.
            fraction = fraction_of(self.test_fraction, len(index), labeled=False)
            held_out = held_out_rows(index, fraction)
            test = self._part("test", index, Rows(len(index), held_out, "test"))
        train = self._part("train", index, Rows(len(index), held_out, "train"))
        return Layout(train, test if len(test) else None, ignored)

    def _part(self, name: str, index: ShardIndex, rows: Rows) -> TarSplit:
        return TarSplit(f"tar {self._shown} ({name})", index, rows, self._label_values)

    def _label_values(self, split: TarSplit) -> tuple[np.ndarray, tuple[str, ...] | None]:
        layout, field = self._layout, self.label.partition(".")[2] or "label"
        for name, part in (("train", layout.train), ("test", layout.test)):
            if name not in self._label_texts and part is not None and part.labeled == len(part):
                self._label_texts[name] = LabelTexts(part, field)
        own, other = ("train", "test") if split is layout.train else ("test", "train")
        return label_values(split, self._label_texts[own], self._label_texts.get(other))

    @property
    def _shown(self) -> str:
        return shortened(self.path if isinstance(self.path, str) else ", ".join(self.path))

    @property
    def has_labels(self) -> bool:
        parts = (self._layout.train, self._layout.test)
        return all(part is not None and part.labeled == len(part) for part in parts)

    @property
    def has_test(self) -> bool:
        return self._layout.test is not None

    @property
    def description(self) -> str:
        layout = self._layout
        shards = {shard for part in (layout.train, layout.test) if part
                  for shard in part.index.shards}  # fmt: skip
        return (
            f"{len(shards)} tar {'archive' if len(shards) == 1 else 'archives'}, "
            f"{'labeled' if self.has_labels else 'unlabeled'}, {len(layout.train)} train and "
            f"{len(layout.test or ())} test images"
        )

    def warnings(self, labels: bool) -> tuple[str, ...]:
        """Warn about truncated and ignored shards, and about incomplete labels."""
        layout, lines = self._layout, list[str]()
        indexes = {id(p.index): p.index for p in (layout.train, layout.test) if p}
        for index in indexes.values():
            for shard, content in zip(index.shards, index.contents, strict=True):
                if content.problem:
                    lines.append(
                        f"{shown(shard.place)}: {content.problem}; only the {content.count} images "
                        "before it are read; copy the shard again"
                    )
            if unsafe := sum(content.unsafe for content in index.contents):
                lines.append(
                    f"data.path={self._shown}: ignoring {unsafe} members whose names are absolute "
                    "or contain '..'; rename them"
                )
        if layout.ignored:
            lines.append(
                f"data.path={self._shown}: ignoring {len(layout.ignored)} shards whose names are "
                f"neither train nor test (first: {shown(layout.ignored[0])}); list shards in "
                "data.path and data.test"
            )
        return (*lines, *(self._label_warnings() if labels else ()))

    def _label_warnings(self) -> tuple[str, ...]:
        parts = [part for part in (self._layout.train, self._layout.test) if part is not None]
        count, labeled = sum(map(len, parts)), sum(part.labeled for part in parts)
        suffix = parts[0].index.label
        if 0 < labeled < count:
            return (
                f"data.path={self._shown}: {count - labeled} of {count} images have no {suffix}, "
                "so all are unlabeled and evaluation is skipped; add the missing labels",
            )
        others = {s for part in parts for content in part.index.contents for s in content.others}
        candidates = [s for s in OTHER_LABELS if s in others and not labeled]
        if not candidates:
            return ()
        return (
            f"data.path={self._shown}: no {suffix} labels, so evaluation is skipped; if the labels "
            f"are in {candidates[0]}, set data.label={candidates[0][1:]}",
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if split is None:
            raise UserError(
                f"data.path={self._shown} has no {name} images; raise data.test_fraction (now "
                f"{self.test_fraction}), or set data.test"
            )
        return split


def _find_shards(paths: Paths, key: str) -> tuple[Storage, list[str]]:
    """Return the shards that the names stand for, in the order of the names.

    Raises:
        UserError: there are none, or they are in several kinds of storage.
    """
    names = (paths,) if isinstance(paths, str) else paths
    if not names:
        raise UserError(f"data.{key}: no shards; list some")
    storages = [storage_of(name) for name in names]
    if len({getattr(storage, "protocol", "") for storage in storages}) > 1:
        raise UserError(f"data.{key}: shards in several kinds of storage; copy them to one")
    storage, places = storages[0], dict[str, None]()
    for name in names:
        matches = _expand_name(storage, name)
        if not matches:
            reason = "no shards (.tar) in it" if user_path(name).is_dir() else NO_FILE
            raise UserError(f"data.{key}={shown(name)}: {reason}; name shards, or their folder")
        places |= dict.fromkeys(matches)
    return storage, list(places)


def _expand_name(storage: Storage, name: str) -> list[str]:
    if isinstance(storage, Disk):
        path = user_path(name)
        if path.is_dir():
            return storage.below(str(path))
        if path.exists():
            return [str(path)]
    return [place for pattern in expand(name) for place in storage.find(pattern)]


def _by_name(places: Sequence[str]) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Sort shards by name into training, test and ignored shards."""
    named: dict[str | None, list[str]] = {split: [] for split in (*WORDS, None)}
    for place in places:
        *above, file = place.split("/")
        split = split_of(os.path.splitext(file)[0]) or (split_of(above[-1]) if above else None)
        named[split].append(place)
    test = "test" if named["test"] else "val"
    if not named["train"] or not named[test]:
        return list(places), [], ()
    others = [place for split in named if split not in ("train", test) for place in named[split]]
    return named["train"], named[test], tuple(others)


def _verify(places: Sequence[str]) -> None:
    """Verify archives against the checksums in their folders; UserError if one differs."""
    by_folder: dict[Path, list[str]] = {}
    for place in places:
        if REMOTE.match(place):
            raise UserError(f"data.verify: {place} is not on a local disk; set data.verify=false")
        by_folder.setdefault(Path(place).parent, []).append(Path(place).name)
    for folder, names in by_folder.items():
        verify(folder, names)


def _shards(storage: Storage, places: Sequence[str]) -> list[Shard]:
    def facts(place: str) -> Shard:
        try:
            return retried(lambda _: storage.shard(place), 0, place)
        except BadImage as error:
            raise UserError(
                f"data.path: {shown(place)}: {error.reason}; correct the name, or copy the shard"
            ) from error

    if not storage.far:
        return [facts(place) for place in places]
    from concurrent.futures import ThreadPoolExecutor

    from ssdistill.data.shards.index import FAR_WORKERS

    with ThreadPoolExecutor(FAR_WORKERS) as pool:
        return list(pool.map(facts, places))


def _no_images(index: ShardIndex) -> str:
    """Explain why the shards have no images, and what to do."""
    problem = next((content.problem for content in index.contents if content.problem), "")
    counts = {s: count for content in index.contents for s, count in content.others.items()}
    named = ", ".join(f"{count} {suffix}" for suffix, count in list(counts.items())[:5])
    reason = f" ({shown(index.shards[0].name)}: {problem})" if problem else ""
    named = f", only {shown(named)}" if named else ""
    return f"no images in these shards{reason}{named}; add members named .jpg, .png, …"
