"""Read labels of images in shards, from members of the same name."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.labels import IGNORE, class_labels
from ssdistill.data.retry import retried
from ssdistill.data.several_labels import are_several, joined, multi_hot, parts_of, rows_of
from ssdistill.data.shards.index import FAR_WORKERS
from ssdistill.data.shards.members import BLOCK, DamagedTar, members
from ssdistill.data.shards.split import TarSplit
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, shortened, shown

LARGEST_LABEL = 1 << 20
"""Maximum size of a ``.json`` file in bytes."""
LONGEST_NAME = 200
"""Maximum length of a class name in characters; longer texts are captions."""
SEPARATOR = r"[\s,;]+"
NUMBER = r"[+-]?\d+(\.\d+)?"
NUMBERS = re.compile(rf"{NUMBER}({SEPARATOR}{NUMBER})*[\s,;]*")
PIECE = 4096
WORKERS = 4


class LabelTexts:
    """The labels of a split, as texts.

    Attributes:
        texts: the distinct texts.
        parts: the labels in each text.
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
        self.parts = [self._parts(split, code) for code in range(len(codes))]

    def _parts(self, split: TarSplit, code: int) -> tuple[str, ...]:
        try:
            return parts_of(self.texts[code])
        except ValueError as error:
            row = int((self.code_N == code).argmax())
            raise _label_error(split, row, f"has {error}") from error

    @property
    def several(self) -> bool:
        """Whether any image has several labels."""
        return any(map(are_several, self.texts, self.parts))

    @property
    def one(self) -> list[str]:
        """The label in each text, if none has several."""
        return [parts[0] for parts in self.parts]

    @property
    def numbers(self) -> np.ndarray | None:
        """(K,) int64, the texts as whole numbers; None if any is not a number."""
        texts = self.one
        if not all(text.removeprefix("-").isdecimal() and len(text) < 19 for text in texts):
            return None
        return np.array([int(text) for text in texts], dtype=np.int64)


def label_values(
    split: TarSplit, labels: LabelTexts, other: LabelTexts | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return the labels of a split, (N,) int64, or (N, K) bool if images have several.

    Also return class names by number; None for numbers, and for one label per image.

    Whole numbers are used as classes. Other texts are class names, which are numbered in sorted
    order over both splits.

    Args:
        labels: of the split.
        other: labels of the other split; None if there are none.

    Raises:
        UserError: labels are invalid, or missing where each image must have one.
    """
    if labels.several or (other is not None and other.several):
        parts_U = [*labels.parts, *(other.parts if other else ())]
        value_UK, names = multi_hot(parts_U, split.title)
        return rows_of(value_UK, labels.code_N, split.title), names
    if not all(labels.parts):
        code = labels.parts.index(())
        raise _label_error(split, int((labels.code_N == code).argmax()), "is empty")
    if (number_K := labels.numbers) is not None:
        label_N = class_labels(number_K[labels.code_N], f"{split.title}: its labels", len(split))
        return label_N, None
    names = {*labels.one, *(parts[0] for parts in (other.parts if other else ()) if parts)}
    if len(names) > max(2, len(split) // 2):
        raise UserError(
            f"{split.title}: its labels are {len(names)} different texts, such as "
            f"'{shortened(labels.one[0])}', rather than classes; {IGNORE}"
        )
    place = {name: k for k, name in enumerate(sorted(names))}
    place_K = np.array([place[text] for text in labels.one], dtype=np.int64)
    return place_K[labels.code_N], None


def _label_error(split: TarSplit, i: int, reason: object) -> UserError:
    return UserError(
        f"{shown(split.title)}: the {split.index.label} of {shown(split.name(i))} "
        f"{shortened(reason, 150)}; correct it, or {IGNORE}"
    )


def _texts(split: TarSplit, field: str) -> Iterator[tuple[int, str]]:
    def text(i: int) -> str:
        try:
            return _checked(retried(lambda _: _content(split, i), i, split.title), split, field)
        except (BadImage, ValueError, RecursionError) as error:
            raise _label_error(split, i, error) from error

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
        if isinstance(value, list):
            return joined([_label_text(int(v) if isinstance(v, bool) else v) for v in value])
        text = _label_text(value)
        if not text:
            raise ValueError("is empty")
        return text
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    # A name may contain spaces; several numbers are several labels.
    if not NUMBERS.fullmatch(text):
        return _label_text(text)
    numbers = re.split(SEPARATOR, text.rstrip(",; "))
    return joined(numbers) if len(numbers) > 1 else _label_text(numbers[0])


def _label_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"holds {shortened(repr(value))} instead of one number or name")
    text = str(value).strip()
    if len(text) > LONGEST_NAME:
        raise ValueError(f"has {len(text)} characters")
    return text


LabelFiles = Callable[[int], bytes]
"""Gives the content of the ``.cls`` file of a row."""


def label_files(split: RawSplit) -> LabelFiles:
    """Return the labels of a split as contents of files, for a packer that only copies them.

    Such a file holds a class, or 0 or 1 for each class where images may have several.

    Raises:
        UserError: there are no labels, or they are invalid.
    """
    labels = split.labels()

    def content(row: int) -> bytes:
        return " ".join(str(int(value)) for value in np.atleast_1d(labels[row])).encode()

    return content
