"""Open the recorded outputs of a teacher: verify them, record what is missing, compare some."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.image_set import ImageSet
from ssdistill.data.read_ahead import ReadAhead
from ssdistill.distill.cache.filling import LiveOutputs, Views, fill_parts
from ssdistill.distill.cache.key import folder_of, key_of, other_of_this_teacher, read_key
from ssdistill.distill.cache.layout import Layout
from ssdistill.distill.cache.parts import Parts
from ssdistill.errors import UserError

COMPARED = 8
"""Images of a pass that are encoded again whenever a cache is opened."""
TOLERANCE = {"fp32": 0.01, "bf16": 0.05, "fp16": 0.02}
"""Largest difference of these from what is recorded, as a fraction of its norm: more than devices
and versions of libraries differ by, and less than the views of an image do."""


@dataclass
class TeacherOutputs:
    """Recorded outputs of one teacher, open for reading.

    Attributes:
        parts: where they are.
        layout: of their rows.
        recorded: whether any had to be recorded now.
    """

    parts: Parts
    layout: Layout
    recorded: bool

    def __post_init__(self) -> None:
        self._rows = self.parts.rows()
        self._announce = ReadAhead(self._rows)

    def rows_of(self, rows_B: np.ndarray, epoch: int) -> np.ndarray:
        """Return the rows, (B, W) int16 with the bits of float16, of images in an epoch."""
        at_B = (epoch % self.parts.passes) * self.parts.num_images + rows_B.astype(np.int64)
        self._announce(at_B)
        return np.take(self._rows, at_B, axis=0).view(np.int16)


def open_outputs(
    root: Path,
    live: LiveOutputs,
    images: ImageSet,
    precision: str,
    say: Callable[[str], object],
) -> TeacherOutputs:
    """Open the recorded outputs of a teacher, and record what is missing.

    Args:
        root: the runs folder.
        live: the teacher with its views; ``live.plan.passes`` must be set.
        images: that ``live.loader`` reads.
        precision: in which ``live.context`` computes, ``fp32``, ``bf16`` or ``fp16``.
        say: prints a line.

    Raises:
        UserError: outputs that float16 cannot hold, too small a disk, a teacher that is not
            frozen, or recorded outputs that differ from live ones.
    """
    passes = live.plan.passes
    if passes is None:
        raise ValueError("recorded outputs require a plan with passes")
    compared = _compared(len(images), passes)
    fresh = {number: _encoded(live, number, rows_K) for number, rows_K in compared.items()}
    layout = Layout.of(fresh[0])
    for outputs in fresh.values():
        layout.pack(outputs, live.name)  # refuses before a folder is made
    seed, views = live.plan.seed, live.plan.plain
    key = key_of(live.teacher, layout, images, views, seed=seed, precision=precision)
    folder = folder_of(root, key)
    if not folder.exists() and (line := other_of_this_teacher(root, key)):
        say(f"  {line}")
    parts = Parts(folder, passes, len(images), layout.width)
    parts.create(key)
    if read_key(folder) != key:
        raise UserError(f"{folder}: recorded for another key; remove the folder and run again")
    missing = _missing(parts, say)
    if missing:
        amount = f"{len(images):,} images, {passes_text(passes)}, {parts.num_bytes:,} bytes"
        if len(missing) < len(parts):
            amount += f"; {1 - len(missing) / len(parts):.0%} are there"
        say(f"  recording outputs of '{live.name}' in {folder}: {amount}")

        def make(number: int, rows_N: np.ndarray) -> np.ndarray:
            return np.concatenate([layout.pack(x, live.name) for x in live.of(number, rows_N)])

        fill_parts(parts, missing, make, f"  outputs of {live.name}", say)
    opened = TeacherOutputs(parts, layout, bool(missing))
    for number, rows_K in compared.items():
        recorded = torch.from_numpy(opened.rows_of(rows_K, number))
        _compare(layout.unpack(recorded), fresh[number], folder, precision)
    return opened


def passes_text(passes: int) -> str:
    """Return a number of passes for a message."""
    return f"{passes} pass{'es' if passes > 1 else ''}"


def _compared(num_images: int, passes: int) -> dict[int, np.ndarray]:
    """Return the images to compare by pass: some of the first, others of the last."""
    spread = np.linspace(0, num_images - 1, min(2 * COMPARED, num_images)).astype(np.int64)
    if passes == 1:
        return {0: spread}
    return {0: spread[::2], passes - 1: spread[1::2] if len(spread) > 1 else spread}


def _encoded(live: LiveOutputs, number: int, rows_K: np.ndarray) -> Views:
    """Return the live outputs of a few images, in one batch."""
    (outputs,) = replace(live, batch_size=len(rows_K)).of(number, rows_K)
    return outputs


def _missing(parts: Parts, say: Callable[[str], object]) -> list[int]:
    statuses = parts.statuses()
    damaged = [part for part, status in enumerate(statuses) if status == "damaged"]
    if damaged:
        number, start, end = parts.place(damaged[0])
        say(
            f"  {parts.folder}: {len(damaged)} of {len(parts)} parts damaged (checksum mismatch; "
            f"first: images {start} to {end - 1} of pass {number}); recording them again"
        )
    return [part for part, status in enumerate(statuses) if status != "complete"]


def _compare(recorded: Views, fresh: Views, folder: Path, precision: str) -> None:
    for view, representation in fresh.items():
        there = recorded[view]
        pairs = {"embedding": (there.embedding_BD, representation.embedding_BD)}
        if representation.projection_BP is not None:
            assert there.projection_BP is not None
            pairs["projection"] = (there.projection_BP, representation.projection_BP)
        pairs |= {name: (there.maps[name], x) for name, x in representation.maps.items()}
        for name, (was, now) in pairs.items():
            difference = relative_difference(was, now)
            if not difference <= TOLERANCE[precision]:
                raise UserError(
                    f"{folder}: recorded outputs are not those of the teacher ({name} of view "
                    f"{view} differs by {difference:.1%}); remove the folder to record them "
                    "again, or set cache=null"
                )


def relative_difference(was: Tensor, now: Tensor) -> float:
    """Return the norm of the difference as a fraction of the norm of ``now``."""
    was, now = was.float(), now.float().to(was.device)
    norm = float(now.norm())
    return float((was - now).norm()) / norm if norm else float(was.norm())
