"""Read labels of images in shards, from members of the same name."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.labels import IGNORE, class_labels
from ssdistill.data.retry import retried
from ssdistill.data.shards.index import FAR_WORKERS
from ssdistill.data.shards.members import BLOCK, DamagedTar, members
from ssdistill.data.shards.split import TarSplit
from ssdistill.errors import UserError, shortened, shown

LARGEST_LABEL = 1 << 20
"""Maximum size of a ``.json`` file in bytes."""
LONGEST_NAME = 200
"""Maximum length of a class name in characters; longer texts are captions."""
PIECE = 4096
WORKERS = 4


class LabelTexts:
    """The labels of a split, as texts.

    Attributes:
        texts: the distinct texts.
        code_N: (N,) int64, the position of each image's label in ``texts``.
    """

    def __init__(self, split: TarSplit, field: str):
        """Read the label of every image.

        Args:
            field: of ``.json`` objects.

        Raises:
            UserError: a label cannot be read, or is invalid.
        """
        codes: dict[str, int] = {}
        self.code_N = np.empty(len(split), dtype=np.int64)
        for i, text in _texts(split, field):
            self.code_N[i] = codes.setdefault(text, len(codes))
        self.texts = list(codes)

    @property
    def numbers(self) -> np.ndarray | None:
        """(K,) int64, the texts as whole numbers; None if any is not a number."""
        if not all(text.removeprefix("-").isdecimal() and len(text) < 19 for text in self.texts):
            return None
        return np.array([int(text) for text in self.texts], dtype=np.int64)


def label_values(split: TarSplit, other: TarSplit | None, field: str) -> np.ndarray:
    """Return (N,) int64 classes of a split.

    Whole numbers are used as classes. Other texts are class names, which are numbered in sorted
    order over both splits.

    Args:
        other: the other split.
        field: of ``.json`` objects.
    """
    labels = LabelTexts(split, field)
    if (number_K := labels.numbers) is not None:
        return class_labels(number_K[labels.code_N], f"{split.title}: its labels", len(split))
    names = set(labels.texts)
    if other is not None and other.labeled == len(other):
        names |= set(LabelTexts(other, field).texts)
    if len(names) > max(2, len(split) // 2):
        raise UserError(
            f"{split.title}: its labels are {len(names)} different texts, such as "
            f"'{shortened(labels.texts[0])}', rather than classes; {IGNORE}"
        )
    place = {name: k for k, name in enumerate(sorted(names))}
    place_K = np.array([place[text] for text in labels.texts], dtype=np.int64)
    return place_K[labels.code_N]


def _texts(split: TarSplit, field: str) -> Iterator[tuple[int, str]]:
    def text(i: int) -> str:
        try:
            return _checked(retried(lambda _: _content(split, i), i, split.title), split, field)
        except (BadImage, ValueError, RecursionError) as error:
            raise UserError(
                f"{shown(split.title)}: the {split.index.label} of {shown(split.name(i))} "
                f"{shortened(error, 150)}; correct it, or {IGNORE}"
            ) from error

    with ThreadPoolExecutor(FAR_WORKERS if split.index.storage.far else WORKERS) as pool:
        for start in range(0, len(split), PIECE):
            piece = range(start, min(start + PIECE, len(split)))
            yield from zip(piece, pool.map(text, piece), strict=True)


def _content(split: TarSplit, i: int) -> bytes:
    """Read a label together with the header before it, which holds its size."""
    shard, block, _, distance, _ = split.place(i)
    start = (block + distance - 1) * BLOCK
    length = min(2 * BLOCK, shard.size - start)
    if start < 0 or length < BLOCK:
        raise BadImage("has moved since it was indexed; run the command again")
    both = split.index.storage.read(shard, start, length)
    # The name of the label is not needed: a long name has extra headers before this one.
    member = None
    with suppress(DamagedTar):
        parts = members(lambda at, count: both[at : at + count], length + LARGEST_LABEL)
        member = next(parts, None)
    if member is None:
        raise BadImage("has moved since it was indexed; run the command again")
    if member.size > LARGEST_LABEL:
        raise BadImage(f"has {member.size} bytes, more than {LARGEST_LABEL}")
    if start + BLOCK + member.size > shard.size:
        raise BadImage(f"is truncated at the end of {shown(shard.name)}")
    if member.size > len(both) - BLOCK:
        return split.index.storage.read(shard, start + BLOCK, member.size)
    return both[BLOCK : BLOCK + member.size]


def _checked(content: bytes, split: TarSplit, field: str) -> str:
    if split.index.label == ".json":
        value: Any = json.loads(content)
        for key in field.split(".") if isinstance(value, dict) else ():
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"has no field '{key}'; set data.label=json.FIELD")
            value = value[key]
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"holds {shortened(repr(value))} instead of one number or name")
        text = str(value).strip()
    else:
        text = content.decode("utf-8").strip()
    if not text or len(text) > LONGEST_NAME:
        raise ValueError("is empty" if not text else f"has {len(text)} characters")
    return text
