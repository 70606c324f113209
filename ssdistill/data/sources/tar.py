"""Tar archives of images, WebDataset's shards: which are read, and which are for what."""

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
from ssdistill.data.packing.checksums import verify
from ssdistill.data.retry import retried
from ssdistill.data.shards.index import ShardIndex
from ssdistill.data.shards.labels import Answers, label_values
from ssdistill.data.shards.patterns import expand
from ssdistill.data.shards.split import Rows, TarSplit, held_out_rows
from ssdistill.data.shards.storage import REMOTE, Disk, Shard, Storage, storage_of
from ssdistill.data.split_names import WORDS, split_of
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError, shortened, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)

Paths = str | tuple[str, ...]
TEST_FRACTION = 0.1
TRAINABLE = 2
"""With at most this many images, none is held out by default."""
OTHER_LABELS = (".cls", ".json", ".txt")


@dataclass(frozen=True)
class Layout:
    """The splits of some shards; ``ignored`` are those for neither."""

    train: TarSplit
    test: TarSplit | None
    ignored: tuple[str, ...]


class Tar(Source):
    """Tar archives as WebDataset writes them, on a disk or elsewhere.

    ``path`` names shards: a file, a folder, ``shards/train-{000..012}.tar``, ``shards/*.tar``, or
    an address such as ``s3://bucket/train-{000..012}.tar`` (``pip install 'ssdistill[remote]'``,
    and what fsspec requires for it). Without ``test``, shards named ``train`` and ``test`` or
    ``val`` (or in folders of these names) are the splits; otherwise images are held out for
    ``test`` by a hash of their name. Headers are read once, into an index beside the shards; then
    any image is read by itself, so that the order is as random as that of files. Archives must
    not be compressed.

    An image is a member that is named like one (``.jpg``, ``.png``, ``.webp``, …), or a ``.npy``
    of (H, W) numbers or (H, W, 3) uint8. Its label is in the ``.cls`` of the same name: a number,
    or a name of a class. An image may have several, or none: numbers in a ``.cls``, or a list in a
    ``.json``. Links, devices, hidden members and names that are absolute or contain
    ``..`` are ignored. By default images are stored as squares of 64 pixels;
    ``data.image_size`` sets another size.

    Args:
        path: the shards, or a list of such names.
        test: the shards of the test images, likewise.
        test_fraction: fraction of the images held out where there are no shards of test images;
            by default 0.1. 0 trains on everything.
        label: where labels are: ``cls``, ``txt``, or ``json``, of which ``json.FIELD`` names the
            field that holds them (by default ``label``).
        verify: compare the archives with the ``checksums.sha256`` in their folder, which
            ``ssdistill data pack`` writes, whenever they are opened.
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
        self._answers: dict[str, Answers] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "verify"}

    @cached_property
    def _layout(self) -> Layout:
        storage, places = _found(self.path, "path")
        ignored: tuple[str, ...] = ()
        if self.test is not None:
            test_storage, tests = _found(self.test, "test")
            if both := set(places) & set(tests):
                raise UserError(
                    f"data.test={shortened(self.test)}: {shown(min(both))} is in data.path, too; "
                    "name each shard once"
                )
        else:
            test_storage, (places, tests, ignored) = storage, _by_name(places)
        if self.verify:
            _verify((*places, *tests))
        suffix = f".{self.label.split('.')[0]}"
        index = ShardIndex(storage, _shards(storage, places), suffix)
        if not len(index):
            raise UserError(f"data.path={self._shown}: {_nothing(index)}")
        if tests:
            held_out = np.zeros(0, dtype=np.int64)
            test_index = ShardIndex(test_storage, _shards(test_storage, tests), suffix)
            test = self._part("test", test_index, Rows(len(test_index), held_out, "train"))
        else:
            fraction = TEST_FRACTION if self.test_fraction is None else self.test_fraction
            if self.test_fraction is None and len(index) <= TRAINABLE:
                fraction = 0.0
            held_out = held_out_rows(index, fraction)
            test = self._part("test", index, Rows(len(index), held_out, "test"))
        train = self._part("train", index, Rows(len(index), held_out, "train"))
        return Layout(train, test if len(test) else None, ignored)

    def _part(self, name: str, index: ShardIndex, rows: Rows) -> TarSplit:
        return TarSplit(f"tar {self._shown} ({name})", index, rows, self._label_values)

    def _label_values(self, split: TarSplit) -> tuple[np.ndarray, tuple[str, ...] | None]:
        layout, field = self._layout, self.label.partition(".")[2] or "label"
        for name, part in (("train", layout.train), ("test", layout.test)):
            if name not in self._answers and part is not None and part.labeled == len(part):
                self._answers[name] = Answers(part, field)
        own, other = ("train", "test") if split is layout.train else ("test", "train")
        return label_values(split, self._answers[own], self._answers.get(other))

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
        """Name shards that are cut off or ignored, and labels that are incomplete."""
        layout, found = self._layout, list[str]()
        indexes = {id(p.index): p.index for p in (layout.train, layout.test) if p}
        for index in indexes.values():
            for shard, content in zip(index.shards, index.contents, strict=True):
                if content.problem:
                    found.append(
                        f"{shown(shard.place)}: {content.problem}; {content.count} images in front "
                        "of it are read; copy the shard again"
                    )
            if unsafe := sum(content.unsafe for content in index.contents):
                found.append(
                    f"data.path={self._shown}: {unsafe} members ignored, whose names are absolute "
                    "or contain '..'"
                )
        if layout.ignored:
            found.append(
                f"data.path={self._shown}: {len(layout.ignored)} shards are ignored, which are "
                f"named for neither split (first: {shown(layout.ignored[0])}); name the splits "
                "with data.path and data.test"
            )
        return (*found, *(self._label_warnings() if labels else ()))

    def _label_warnings(self) -> tuple[str, ...]:
        parts = [part for part in (self._layout.train, self._layout.test) if part is not None]
        count, labeled = sum(map(len, parts)), sum(part.labeled for part in parts)
        suffix = parts[0].index.label
        if 0 < labeled < count:
            return (
                f"data.path={self._shown}: {count - labeled} of {count} images have no {suffix}, "
                "so all are unlabeled and evaluation is skipped",
            )
        others = {s for part in parts for found in part.index.contents for s in found.others}
        there = [s for s in OTHER_LABELS if s in others and not labeled]
        if not there:
            return ()
        return (
            f"data.path={self._shown}: no labels in {suffix}, so evaluation is skipped; if they "
            f"are in {there[0]}, set data.label={there[0][1:]}",
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if split is None:
            raise UserError(
                f"data.path={self._shown} has no {name} images; name shards with data.test, or "
                f"raise data.test_fraction (now {self.test_fraction})"
            )
        return split


def _found(paths: Paths, key: str) -> tuple[Storage, list[str]]:
    """Return the shards that some names stand for, in the order of the names.

    Raises:
        UserError: none, or names in several places.
    """
    names = (paths,) if isinstance(paths, str) else paths
    if not names:
        raise UserError(f"data.{key}: names no shards; name some")
    storages = [storage_of(name) for name in names]
    if len({getattr(storage, "protocol", "") for storage in storages}) > 1:
        raise UserError(f"data.{key}: shards in several kinds of places; copy them to one")
    storage, places = storages[0], dict[str, None]()
    for name in names:
        found = _of_name(storage, name)
        if not found:
            raise UserError(f"data.{key}={shown(name)}: no such shards (.tar); correct the name")
        places |= dict.fromkeys(found)
    return storage, list(places)


def _of_name(storage: Storage, name: str) -> list[str]:
    if isinstance(storage, Disk):
        path = user_path(name)
        if path.is_dir():
            return storage.below(str(path))
        if path.exists():
            return [str(path)]
    return [place for one in expand(name) for place in storage.find(one)]


def _by_name(places: Sequence[str]) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Return the shards for training, those for testing, and those for neither, by their names."""
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
    """Compare archives with the checksums in their folders; raise UserError where one differs."""
    by_folder: dict[Path, list[str]] = {}
    for place in places:
        if REMOTE.match(place):
            raise UserError(f"data.verify: {place} is not on a disk; set data.verify=false")
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


def _nothing(index: ShardIndex) -> str:
    """Explain why there is no image in some shards."""
    problem = next((found.problem for found in index.contents if found.problem), "")
    seen = {suffix: count for found in index.contents for suffix, count in found.others.items()}
    named = ", ".join(f"{count} {suffix}" for suffix, count in list(seen.items())[:5])
    reason = f" ({shown(index.shards[0].name)}: {problem})" if problem else ""
    named = f"; it holds {shown(named)}" if named else ""
    return f"no images in these shards{reason}{named}; images are members named .jpg, .png, …"
