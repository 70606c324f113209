"""Labels of images in shards, from members of the same name; read when they are wanted."""

import json
import re
from collections.abc import Iterator
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
from ssdistill.errors import UserError, shortened, shown

LARGEST_LABEL = 1 << 20
"""Bytes of a ``.json``."""
LONGEST_NAME = 200
"""Characters of a class name; what is longer is a caption."""
APART = r"[\s,;]+"
NUMBERS = re.compile(rf"\d+({APART}\d+)+")
PIECE = 4096
WORKERS = 4


class Answers:
    """What stands in the labels of a split.

    Attributes:
        texts: each that occurs, once.
        parts: the labels in each text.
        code_N: (N,) int64, where in ``texts`` each image's is.
    """

    def __init__(self, split: TarSplit, field: str):
        """Read the label of every image.

        Args:
            field: of a ``.json`` that is an object.

        Raises:
            UserError: a label that cannot be read, or is none.
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
            raise _refused(split, int((self.code_N == code).argmax()), f"has {error}") from error

    @property
    def several(self) -> bool:
        """Whether any image has several labels."""
        return any(map(are_several, self.texts, self.parts))

    @property
    def one(self) -> list[str]:
        """The label in each text, where none has several."""
        return [parts[0] for parts in self.parts]

    @property
    def numbers(self) -> np.ndarray | None:
        """(K,) the whole number that each text is; None if any is none."""
        texts = self.one
        if not all(text.removeprefix("-").isdecimal() and len(text) < 19 for text in texts):
            return None
        return np.array([int(text) for text in texts], dtype=np.int64)


def label_values(
    split: TarSplit, answers: Answers, other: Answers | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return (N,) int64 classes of a split; or (N, K) bool, and their names, of several an image.

    Whole numbers are classes as they are. Other texts are names, and their places in the sorted
    list of all names, of both splits, are the classes.

    Args:
        other: what stands in the labels of the other split, which counts, too.

    Raises:
        UserError: labels that are none, or none of an image where each has one.
    """
    if answers.several or (other is not None and other.several):
        parts_U = [*answers.parts, *(other.parts if other else ())]
        value_UK, names = multi_hot(parts_U, split.title)
        return rows_of(value_UK, answers.code_N, split.title), names
    if not all(answers.parts):
        code = answers.parts.index(())
        raise _refused(split, int((answers.code_N == code).argmax()), "is empty")
    if (number_K := answers.numbers) is not None:
        label_N = class_labels(number_K[answers.code_N], f"{split.title}: its labels", len(split))
        return label_N, None
    names = {*answers.one, *(parts[0] for parts in (other.parts if other else ()) if parts)}
    if len(names) > max(2, len(split) // 2):
        raise UserError(
            f"{split.title}: its labels are {len(names)} different texts, such as "
            f"{shortened(answers.one[0])}, not classes; {IGNORE}"
        )
    place = {name: k for k, name in enumerate(sorted(names))}
    place_K = np.array([place[text] for text in answers.one], dtype=np.int64)
    return place_K[answers.code_N], None


def _refused(split: TarSplit, i: int, why: object) -> UserError:
    return UserError(
        f"{shown(split.title)}: the {split.index.label} of {shown(split.name(i))} "
        f"{shortened(why, 150)}; correct it, or {IGNORE}"
    )


def _texts(split: TarSplit, field: str) -> Iterator[tuple[int, str]]:
    def text(i: int) -> str:
        try:
            return _checked(retried(lambda _: _content(split, i), i, split.title), split, field)
        except (BadImage, ValueError, RecursionError) as error:
            raise _refused(split, i, error) from error

    with ThreadPoolExecutor(FAR_WORKERS if split.index.storage.far else WORKERS) as pool:
        for start in range(0, len(split), PIECE):
            piece = range(start, min(start + PIECE, len(split)))
            yield from zip(piece, pool.map(text, piece), strict=True)


def _content(split: TarSplit, i: int) -> bytes:
    """Read a label, and with it the header in front of it, which has its size."""
    shard, block, _, distance, _ = split.place(i)
    start = (block + distance - 1) * BLOCK
    length = min(2 * BLOCK, shard.size - start)
    if start < 0 or length < BLOCK:
        raise BadImage("is not where the index says; run the command again")
    both = split.index.storage.read(shard, start, length)
    # A name that is longer has headers of its own before this one.
    member = None
    with suppress(DamagedTar):
        parts = members(lambda at, count: both[at : at + count], length + LARGEST_LABEL)
        member = next(parts, None)
    if member is None:
        raise BadImage("is not where the index says; run the command again")
    if member.size > LARGEST_LABEL:
        raise BadImage(f"has {member.size} bytes")
    if start + BLOCK + member.size > shard.size:
        raise BadImage(f"is cut off with {shown(shard.name)}")
    if member.size > len(both) - BLOCK:
        return split.index.storage.read(shard, start + BLOCK, member.size)
    return both[BLOCK : BLOCK + member.size]


def _checked(content: bytes, split: TarSplit, field: str) -> str:
    if split.index.label == ".json":
        value: Any = json.loads(content)
        for key in field.split(".") if isinstance(value, dict) else ():
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"has no field '{key}'; name one with data.label=json.FIELD")
            value = value[key]
        if isinstance(value, list):
            return joined([_named(int(v) if isinstance(v, bool) else v) for v in value])
        text = _named(value)
        if not text:
            raise ValueError("is empty")
        return text
    text = content.decode("utf-8").strip()
    # A name may contain blanks; several numbers are several classes.
    return joined(re.split(APART, text)) if NUMBERS.fullmatch(text) else _named(text)


def _named(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"holds {shortened(repr(value))}, not one number or name")
    text = str(value).strip()
    if len(text) > LONGEST_NAME:
        raise ValueError(f"is a text of {len(text)} characters")
    return text
