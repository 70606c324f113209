"""What recorded outputs follow from: the key that names their folder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssdistill.data.extra import PlannedView
from ssdistill.data.image_set import ImageSet
from ssdistill.distill.cache.layout import Layout
from ssdistill.errors import shortened
from ssdistill.models.backbones import Encoder
from ssdistill.models.identity import encoder_sha256, weights_sha256

KEY = "key.json"
VERSION = 1
"""Raised when the same key would name other numbers."""
Key = dict[str, Any]


def key_of(
    teacher: Encoder,
    layout: Layout,
    images: ImageSet,
    views: Sequence[PlannedView],
    *,
    seed: int,
    precision: str,
) -> Key:
    """Return everything that the outputs follow from, ready for JSON.

    The number of passes is none of it: those of fewer passes are the first of those of more.

    Args:
        views: those that the teacher encodes.
        seed: of the views' random draws.
        precision: number format in which the teacher computes.
    """
    projection = None
    if teacher.project and teacher.projector is not None:
        projection = weights_sha256(teacher.projector)
    key = {
        "version": VERSION,
        "teacher": encoder_sha256(teacher),
        "projector": projection,
        "outputs": [str(column) for column in layout.columns],
        "precision": precision,
        "data": images.fingerprint,
        "images": len(images),
        "pixels": type(images).__name__,
        "number of views": len(views),
        "views": {
            str(view.number): {"recipe": view.recipe.model_dump(mode="json"), "size": view.size}
            for view in views
        },
        "seed": seed,
    }
    # As it is read back: a list in place of every tuple.
    return json.loads(json.dumps(key))


def digest_of(key: Key) -> str:
    """Return the sha256 (hex) of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def folder_of(root: Path, key: Key) -> Path:
    """Return the folder of a key below ``<root>/teacher_outputs``."""
    return root / "teacher_outputs" / digest_of(key)[:16]


def read_key(folder: Path) -> Key | None:
    """Return the key that a folder was made for; None if there is none that can be read."""
    try:
        key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return None
    return key if isinstance(key, dict) else None


def other_of_this_teacher(root: Path, key: Key) -> str | None:
    """Say which parts of the key differ from that of the most similar cache of the same teacher."""
    found: list[tuple[int, str]] = []
    for file in sorted((root / "teacher_outputs").glob(f"*/{KEY}")):
        other = read_key(file.parent)
        if other is None or other == key or other.get("teacher") != key["teacher"]:
            continue
        parts = [part for name in key if (part := _difference(name, other.get(name), key[name]))]
        line = f"{file.parent}: of the same teacher, not used: {'; '.join(parts)}"
        found.append((len(parts), line))
    return min(found)[1] if found else None


def _difference(name: str, there: Any, here: Any) -> str:
    if there == here:
        return ""
    if isinstance(here, str | int) and isinstance(there, str | int):
        return f"{name} {shortened(there, 12)} there, {shortened(here, 12)} here"
    return f"other {name}"
