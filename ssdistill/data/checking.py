"""Find unreadable, duplicated and unusual images of a source, without reading labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.duplicates import equal_groups
from ssdistill.data.image_index import verified
from ssdistill.data.inspection import (
    CONSTANT,
    MODES,
    QUANTILES,
    Inspected,
    mode_name,
    modes_of,
    odd_sizes,
    quantiles,
)
from ssdistill.data.opening import index_folder, open_source
from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import SPLITS, Source

Groups = list[list["Finding"]]


@dataclass(frozen=True)
class Finding:
    """One image, and a phrase on what was found; empty for duplicates."""

    split: str
    row: int
    name: str
    detail: str = ""


class Checked:
    """The inspected images of a source.

    Attributes:
        source: opened without labels.
        parts: the inspected images of each split.
        unreadable, constant, odd_sizes, other_modes: images, in their order.
        duplicates: groups of images with equal bytes.
        near: groups of near-duplicates that are not all equal; None if not searched for.
        changed: images whose bytes no longer match the index; None if nothing was verified.
        notices: further warnings, one line each.
    """

    def __init__(self, settings: StoreSettings, root: Path | None = None):
        """Inspect every image.

        Args:
            root: folder of the indexes to verify; None to skip this.

        Raises:
            UserError: whatever the source raises.
        """
        self.source: Source = open_source(settings.model_copy(update={"labels": "none"}))
        self.notices: list[str] = list(self.source.warnings(labels=False))
        names = [name for name in SPLITS if name == "train" or self.source.has_test]
        self.changed = None if root is None else self._verified(names, settings, root)
        self.parts = {
            name: Inspected(self.source.split(name), settings.max_pixels, settings.form)
            for name in names
        }
        self._ends = np.cumsum([0, *(len(part.facts_N) for part in self.parts.values())])
        self.near: Groups | None = None
        self.unreadable = [
            self._finding(name, row, reason)
            for name, part in self.parts.items()
            for row, reason in part.reasons.items()
        ]
        self.constant = [
            self._finding(name, row, "all pixels are equal")
            for name, part in self.parts.items()
            for row in part.flagged(CONSTANT).tolist()
        ]
        facts_N = np.concatenate([part.facts_N for part in self.parts.values()])
        self._digest_N, self._readable_N = facts_N["digest"], facts_N["height"] > 0
        self.duplicates = self._named(equal_groups(self._digest_N, self._readable_N))
        self.odd_sizes = [
            self._finding(name, row, f"{_size(self.parts[name], row)}, {why}")
            for name, odd in zip(self.parts, odd_sizes(list(self.parts.values())), strict=True)
            for row, why in odd.items()
        ]
        self.modes = modes_of(list(self.parts.values()))
        if settings.channels is not None:
            self.modes = {"8 bits" if m == "RGB" else m: n for m, n in self.modes.items()}
        self.other_modes = self._other_modes()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _verified(
        self, names: Sequence[str], settings: StoreSettings, root: Path
    ) -> list[Finding] | None:
        """Verify the indexes of the splits; None if there are none."""
        changed: list[Finding] | None = None
        for name in names:
            raw = self.source.split(name).encoded()
            folder = index_folder(self.source, name, settings, root)
            rows = (
                None if raw is None else verified(raw, folder, bands=settings.channels is not None)
            )
            if raw is None or rows is None:
                self.notices.append(f"{name}: there is no index to verify in {root}")
            else:
                detail = "its bytes changed, but not its size and time"
                findings = [Finding(name, row, raw.name(row), detail) for row in rows.tolist()]
                changed = [*(changed or []), *findings]
        return changed

    def _other_modes(self) -> list[Finding]:
        """Return the images of all modes except the most frequent one."""
        usual = next(iter(self.modes), None)
        findings = []
        for name, part in self.parts.items():
            flags_N = part.facts_N["flags"] & MODES
            odd = [flags for flags in np.unique(flags_N) if mode_name(int(flags)) != usual]
            rows = np.flatnonzero(np.isin(flags_N, odd) & (part.facts_N["height"] > 0))
            findings += [self._finding(name, r, mode_name(int(flags_N[r]))) for r in rows.tolist()]
        return findings

    def find_near(self, groups: Sequence[Sequence[int]]) -> None:
        """Set groups of image numbers (see :meth:`numbers`) as near-duplicates.

        Groups that consist of equal images are ignored, since they are duplicates.
        """
        words_N2 = np.ascontiguousarray(self._digest_N).view("<u8").reshape(len(self), 2)
        near = [group for group in groups if len(np.unique(words_N2[list(group)], axis=0)) > 1]
        self.near = self._named(near)

    def numbers(self, split: str, row_M: np.ndarray) -> np.ndarray:
        """Return the numbers, counted over all splits, of the given rows of a split."""
        return row_M + self._ends[list(self.parts).index(split)]

    @property
    def shared(self) -> int:
        """Number of groups of duplicates and near-duplicates with images of both splits."""
        groups = [*self.duplicates, *(self.near or [])]
        return sum(len({finding.split for finding in group}) > 1 for group in groups)

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        lists = {
            "unreadable": self.unreadable,
            "constant": self.constant,
            "odd_sizes": self.odd_sizes,
            "other_modes": self.other_modes,
        }
        if self.changed is not None:
            lists["changed"] = self.changed
        groups = {"duplicates": self.duplicates}
        if self.near is not None:
            groups["near_duplicates"] = self.near
        return {
            "source": self.source.description,
            "images": {name: len(part.facts_N) for name, part in self.parts.items()},
            "counts": {name: len(items) for name, items in (lists | groups).items()}
            | {"groups_in_both_splits": self.shared},
            "modes": self.modes,
            "sizes": {"quantiles": list(QUANTILES)} | quantiles(list(self.parts.values())),
            "notices": self.notices,
            **{name: [vars(finding) for finding in items] for name, items in lists.items()},
            **{n: [[vars(f) for f in group] for group in items] for n, items in groups.items()},
        }

    def _named(self, groups: Sequence[Sequence[int]]) -> Groups:
        return [[self._numbered(number) for number in group] for group in groups]

    def _numbered(self, number: int) -> Finding:
        for (name, _), (start, stop) in zip(self.parts.items(), pairwise(self._ends), strict=True):
            if number < stop:
                return self._finding(name, int(number - start))
        raise IndexError(number)

    def _finding(self, split: str, row: int, detail: str = "") -> Finding:
        return Finding(split, row, self.parts[split].raw.name(row), detail)


def find_near_duplicates(
    checked: Checked,
    embed: Callable[[str], tuple[Any, np.ndarray]],
    group: Callable[[Any], list[list[int]]],
) -> None:
    """Search for near-duplicates in all splits together.

    Args:
        embed: returns the embeddings (M, D) of a split's readable images and their rows (M,).
        group: returns groups of positions of embeddings.
    """
    import torch

    parts = {name: embed(name) for name in checked.parts}
    number_M = np.concatenate([checked.numbers(name, rows) for name, (_, rows) in parts.items()])
    groups = group(torch.cat([embedding_MD for embedding_MD, _ in parts.values()]))
    checked.find_near([number_M[positions].tolist() for positions in groups])


def _size(part: Inspected, row: int) -> str:
    return f"{part.facts_N['width'][row]}x{part.facts_N['height'][row]}"
