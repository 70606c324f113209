"""Find the images of a shard, and the label of each, from its headers."""

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.listing import EXTENSIONS, PASSED_OVER
from ssdistill.data.shards.members import BLOCK, COMPRESSED, DamagedTar, Member, members
from ssdistill.data.shards.storage import Shard, Storage

RECORD = np.dtype(
    [("key", "<u8"), ("block", "<u4"), ("size", "<u4"), ("label", "<i4"), ("head", "<u4")]
)
"""An image: a hash of its name; the block its content begins at, and the bytes of it; how many
blocks further its label begins, 0 for none; and the blocks of its headers."""
IMAGES = frozenset((*EXTENSIONS, ".npy"))
LARGEST = (1 << 32) - 1
MOST_SUFFIXES = 50
"""Suffixes of other members that are counted one by one."""


@dataclass
class Contents:
    """What was found in a shard.

    Attributes:
        count: number of images.
        labeled: how many of them have a label.
        others: number of other members by suffix.
        unsafe: how many members were ignored for their name: absolute, or with ``..``.
        problem: why reading it ended before its end; empty for none.
    """

    count: int = 0
    labeled: int = 0
    others: dict[str, int] = field(default_factory=dict)
    unsafe: int = 0
    problem: str = ""


def scan(storage: Storage, shard: Shard, label: str) -> tuple[np.ndarray, Contents]:
    """Return the images of a shard, (M,) :data:`RECORD`, and what else is in it.

    A label belongs to the images whose name is the same up to the first dot, as WebDataset
    groups them; of several, the nearest in the shard is an image's.

    Raises:
        OSError: the shard cannot be read.
        BadImage: it is compressed, or larger than an index can say.
    """
    if shard.size > LARGEST * BLOCK:
        raise BadImage(f"{shard.size} bytes; split it into shards of at most {LARGEST * BLOCK}")
    images, labels, contents = _Images(), _Labels(), Contents()
    others: Counter[str] = Counter()
    with storage.reader(shard) as read:
        _refuse_compressed(read(0, 8))
        try:
            for member in members(read, shard.size):
                folder, _, file = member.name.rpartition(b"/")
                suffix = _suffix(file)
                if _unsafe(member.name):
                    contents.unsafe += 1
                elif _passed_over(folder, file):
                    others["hidden"] += 1
                elif suffix == label:
                    labels.add(folder, file, member)
                elif suffix in IMAGES and member.size <= LARGEST:
                    images.add(folder, file, member)
                else:
                    others[suffix if len(others) < MOST_SUFFIXES else "more"] += 1
        except DamagedTar as error:
            contents.problem = str(error)
    records_M = images.records(labels)
    contents.count, contents.others = len(records_M), dict(others)
    contents.labeled = int(np.count_nonzero(records_M["label"]))
    return records_M, contents


def _refuse_compressed(head: bytes) -> None:
    for signature, (name, program) in COMPRESSED.items():
        if head.startswith(signature):
            raise BadImage(
                f"is compressed with {name}, so that no image can be read before those in front "
                f"of it; unpack it with {program} (images are compressed themselves)"
            )


def _suffix(file: bytes) -> str:
    stem, dot, suffix = file.rpartition(b".")
    return f".{suffix.decode('utf-8', 'replace').lower()}" if dot and stem else ""


def _unsafe(name: bytes) -> bool:
    return name.startswith(b"/") or b"\\" in name or (b".." in name and b".." in name.split(b"/"))


def _passed_over(folder: bytes, file: bytes) -> bool:
    if file.startswith(b"."):
        return True
    parts = folder.split(b"/") if folder else ()
    return any(
        (part.startswith(b".") and part != b".") or part.decode("utf-8", "replace") in PASSED_OVER
        for part in parts
    )


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class _Labels:
    """Labels of a shard: a hash of the name up to its first dot, and the block of the content."""

    def __init__(self) -> None:
        self.groups, self.blocks = array("Q"), array("Q")

    def add(self, folder: bytes, file: bytes, member: Member) -> None:
        self.groups.append(_hash(folder + b"/" + file.split(b".", 1)[0]))
        self.blocks.append(member.data // BLOCK)


class _Images(_Labels):
    """Images of a shard; numbers only, since a shard may hold millions."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.sizes, self.heads = array("Q"), array("Q"), array("Q")

    def add(self, folder: bytes, file: bytes, member: Member) -> None:
        super().add(folder, file, member)
        self.keys.append(_hash(member.name))
        self.sizes.append(member.size)
        self.heads.append((member.data - member.head) // BLOCK)

    def records(self, labels: _Labels) -> np.ndarray:
        records_M = np.zeros(len(self.keys), RECORD)
        columns = (self.keys, self.blocks, self.sizes, self.heads)
        for name, values in zip(("key", "block", "size", "head"), columns, strict=True):
            records_M[name] = np.frombuffer(values, values.typecode) if values else 0
        if len(self.keys) and len(labels.groups):
            records_M["label"] = _nearest(self, labels)
        return records_M


def _nearest(images: _Images, labels: _Labels) -> np.ndarray:
    """Return how many blocks after an image the nearest label of its group begins, (M,) int64."""
    group_L, rank_L = np.unique(np.frombuffer(labels.groups, "Q"), return_inverse=True)
    group_M = np.frombuffer(images.groups, "Q")
    rank_M = np.minimum(np.searchsorted(group_L, group_M), len(group_L) - 1)
    # Group and block in one number, so that a group's labels are sorted by where they lie.
    shift = np.uint64(32)
    place_L = np.sort(rank_L.astype(np.uint64) << shift | np.frombuffer(labels.blocks, "Q"))
    block_M = np.frombuffer(images.blocks, "Q")
    after_M = np.searchsorted(place_L, rank_M.astype(np.uint64) << shift | block_M)
    far = np.int64(1) << np.int64(40)
    best_M = np.full(len(group_M), far)
    for at_M in (after_M, after_M - 1):
        found_M = place_L[np.clip(at_M, 0, len(place_L) - 1)]
        distance_M = (found_M & np.uint64(LARGEST)).astype(np.int64) - block_M.astype(np.int64)
        distance_M[(found_M >> shift != rank_M) | (group_L[rank_M] != group_M)] = far
        best_M = np.where(abs(distance_M) < abs(best_M), distance_M, best_M)
    # What does not fit into the record is no neighbor.
    return np.where(abs(best_M) < 1 << 31, best_M, 0)
