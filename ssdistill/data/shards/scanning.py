"""Find the images of a shard and their labels, from headers alone."""

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.formats import reads_suffix
from ssdistill.data.listing import EXTENSIONS, IGNORED_FOLDERS, WITH_BANDS
from ssdistill.data.shards.members import BLOCK, COMPRESSED, DamagedTar, Member, members
from ssdistill.data.shards.storage import Shard, Storage

RECORD = np.dtype(
    [("key", "<u8"), ("block", "<u4"), ("size", "<u4"), ("label", "<i4"), ("head", "<u4")]
)
"""One image: a hash of its name, the first block and the size in bytes of its content, the distance
in blocks to its label (0 for none), and the number of header blocks."""
IMAGES = frozenset((*EXTENSIONS, ".npy"))
"""Suffixes of images, in lower case."""
LARGEST = (1 << 32) - 1
NONE = 1 << 62
"""Distance to a missing label."""
MOST_SUFFIXES = 50
"""Number of suffixes of other members to count separately."""


@dataclass
class Contents:
    """The content of a shard.

    Attributes:
        count: number of images.
        labeled: number of images with a label.
        others: number of other members by suffix.
        unsafe: number of members ignored for their names, absolute or with ``..``.
        problem: why only part of the shard could be read; empty if all of it was.
    """

    count: int = 0
    labeled: int = 0
    others: dict[str, int] = field(default_factory=dict)
    unsafe: int = 0
    problem: str = ""


def scan(
    storage: Storage, shard: Shard, label: str, any_bands: bool = False
) -> tuple[np.ndarray, Contents]:
    """Return the images of a shard, (M,) :data:`RECORD`, and a summary of its content.

    As in WebDataset, an image and its label have the same name up to the first dot. Of several
    labels, an image gets the nearest in the shard, preferring the side where the first image has
    its label.

    Args:
        any_bands: whether images may have any number of channels, as those of more suffixes do.

    Raises:
        OSError: the shard cannot be read.
        BadImage: it is compressed, or too large for the index.
    """
    if shard.size > LARGEST * BLOCK:
        raise BadImage(f"has {shard.size} bytes; split it into shards of at most {LARGEST * BLOCK}")
    suffixes = IMAGES | WITH_BANDS if any_bands else IMAGES
    images, labels, contents = _Images(), _Labels(), Contents()
    others: Counter[str] = Counter()
    with storage.reader(shard) as read:
        _check_uncompressed(read(0, 8))
        try:
            for number, member in enumerate(members(read, shard.size)):
                folder, _, file = member.name.rpartition(b"/")
                suffix = _suffix(file)
                if _unsafe(member.name):
                    contents.unsafe += 1
                elif _is_ignored(folder, file):
                    others["hidden"] += 1
                elif suffix == label:
                    labels.add(folder, file, member, number)
                elif (suffix in suffixes or reads_suffix(suffix)) and member.size <= LARGEST:
                    images.add(folder, file, member, number)
                else:
                    others[suffix if len(others) < MOST_SUFFIXES else "more"] += 1
        except DamagedTar as error:
            contents.problem = str(error)
    records_M = images.records(labels)
    contents.count, contents.others = len(records_M), dict(others)
    contents.labeled = int(np.count_nonzero(records_M["label"]))
    return records_M, contents


def _check_uncompressed(head: bytes) -> None:
    for signature, (name, program) in COMPRESSED.items():
        if head.startswith(signature):
            raise BadImage(
                f"is compressed with {name}, which rules out random access; decompress it with "
                f"{program} (the images themselves stay compressed)"
            )


def _suffix(file: bytes) -> str:
    stem, dot, suffix = file.rpartition(b".")
    return f".{suffix.decode('utf-8', 'replace').lower()}" if dot and stem else ""


def _unsafe(name: bytes) -> bool:
    return name.startswith(b"/") or b"\\" in name or (b".." in name and b".." in name.split(b"/"))


def _is_ignored(folder: bytes, file: bytes) -> bool:
    if file.startswith(b"."):
        return True
    parts = folder.split(b"/") if folder else ()
    return any(
        (part.startswith(b".") and part != b".")
        or part.decode("utf-8", "replace") in IGNORED_FOLDERS
        for part in parts
    )


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class _Labels:
    """Labels of a shard: a hash of the name up to its first dot, and the position."""

    def __init__(self) -> None:
        self.groups, self.blocks, self.numbers = array("Q"), array("Q"), array("Q")

    def add(self, folder: bytes, file: bytes, member: Member, number: int) -> None:
        """Add a member, given its number in the shard."""
        self.groups.append(_hash(folder + b"/" + file.split(b".", 1)[0]))
        self.blocks.append(member.data // BLOCK)
        self.numbers.append(number)


class _Images(_Labels):
    """Images of a shard, stored as numbers, since there may be millions."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.sizes, self.heads = array("Q"), array("Q"), array("Q")

    def add(self, folder: bytes, file: bytes, member: Member, number: int) -> None:
        super().add(folder, file, member, number)
        self.keys.append(_hash(member.name))
        self.sizes.append(member.size)
        self.heads.append((member.data - member.head) // BLOCK)

    def records(self, labels: _Labels) -> np.ndarray:
        records_M = np.zeros(len(self.keys), RECORD)
        if not len(records_M):
            return records_M
        columns = (self.keys, self.blocks, self.sizes, self.heads)
        for name, values in zip(("key", "block", "size", "head"), columns, strict=True):
            records_M[name] = _numbers(values)
        if len(labels.groups):
            records_M["label"] = _nearest(self, labels)
        return records_M


def _numbers(values: array) -> np.ndarray:
    return np.frombuffer(values, dtype=np.uint64).astype(np.int64, copy=False)


def _nearest(images: _Images, labels: _Labels) -> np.ndarray:
    """Return the distance in blocks from each image to the nearest label of its group.

    Returns:
        (M,) int64, negative before the image, 0 without a label.
    """
    group_K, rank_L = np.unique(_numbers(labels.groups), return_inverse=True)
    group_M = _numbers(images.groups)
    rank_M = np.minimum(np.searchsorted(group_K, group_M), len(group_K) - 1)
    has_M = group_K[rank_M] == group_M
    # Combine group and position in one number, to sort the labels of a group by position.
    place_L = rank_L << 32 | _numbers(labels.numbers)
    order_L = np.argsort(place_L)
    place_M = rank_M << 32 | _numbers(images.numbers)
    next_M = np.searchsorted(place_L, place_M, sorter=order_L)
    sides = (next_M, next_M - 1) if images.numbers[0] < labels.numbers[0] else (next_M - 1, next_M)
    best_M, found_M = np.full(len(group_M), NONE), np.zeros(len(group_M), dtype=np.int64)
    for at_M in sides:
        label_M = order_L[np.clip(at_M, 0, len(order_L) - 1)]
        distance_M = np.where(
            has_M & (rank_L[label_M] == rank_M), abs(place_L[label_M] - place_M), NONE
        )
        found_M = np.where(distance_M < best_M, label_M, found_M)
        best_M = np.minimum(distance_M, best_M)
    offset_M = _numbers(labels.blocks)[found_M] - _numbers(images.blocks)
    # Distances that do not fit into the record count as missing.
    return np.where((best_M < NONE) & (abs(offset_M) < 1 << 31), offset_M, 0)
