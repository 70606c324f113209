"""Embed images into an array, for as many as memory holds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssdistill.data.progress import with_bar
from ssdistill.label_free.embedding.batches import Encoding, encoded
from ssdistill.label_free.embedding.parts import Part, all_names


def embeddings_of(
    encoder: Any, parts: Sequence[Part], encoding: Encoding, progress: bool = True
) -> tuple[np.ndarray, list[str]]:
    """Return the rows of all images that can be read, (N, …), and their names.

    Raises:
        UserError: whatever :func:`ssdistill.label_free.embedding.batches.encoded` raises.
    """
    total = sum(map(len, parts))
    found: np.ndarray | None = None
    count = 0
    for batch, part, at in with_bar(
        _batches(encoder, parts, encoding), total, "embedding", shown_at_all=progress
    ):
        if found is None:
            found = np.empty((total, *batch.shape[1:]), batch.dtype)
        kept_B = [row not in part.failed for row in part.rows(at, at + len(batch)).tolist()]
        kept = batch[kept_B]
        found[count : count + len(kept)] = kept
        count += len(kept)
    names = [name for _, names in all_names(parts) for name in names]
    return (np.empty((0, 0), encoding.dtype) if found is None else found[:count]), names


def _batches(
    encoder: Any, parts: Sequence[Part], encoding: Encoding
) -> Iterator[tuple[np.ndarray, Part, int]]:
    for part in parts:
        for batch, at in encoded(encoder, part, encoding):
            yield batch, part, at
