"""Which columns of a table hold encoded images and labels."""

import json
from contextlib import suppress
from typing import Any

from ssdistill.data.list_columns import Wanted, columns_of_classes
from ssdistill.data.table_split import Labels
from ssdistill.errors import UserError, nearest, shown

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
LABELS = ("label", "labels", "class", "target", "category", "cls", "fine_label", "y")
"""Usual names, likeliest first."""
MOST_NAMED = 20
LARGEST_FEATURES = 1 << 24
"""Bytes of a description of columns by Hugging Face."""
BINARY = ("binary", "large_binary", "binary_view")


def image_column(schema: Any, wanted: str | None, title: str) -> str:
    """Find the column of encoded images: bytes, or a struct with a field ``bytes``.

    Args:
        schema: a ``pyarrow.Schema``.
        wanted: its name, if it is known.
        title: of the table in messages.

    Raises:
        UserError: there is none, or several.
    """
    found = [field.name for field in schema if _holds_images(field.type)]
    if wanted is not None:
        if wanted in found:
            return wanted
        fits = wanted in schema.names and schema.field(wanted).type
        reason = f"it is {fits}, not bytes" if fits else f"no such column{nearest(wanted, found)}"
        raise UserError(f"{title}: data.column={shown(wanted)}: {reason}; {_columns(schema)}")
    usual = [name for name in IMAGES if name in found]
    if len(found) > 1 and not usual:
        named = ", ".join(map(shown, found[:MOST_NAMED]))
        raise UserError(f"{title}: columns {named} hold bytes; set data.column to that of images")
    if not found:
        raise UserError(
            f"{title}: no column holds encoded images (bytes, or a struct with bytes); "
            f"{_columns(schema)}"
        )
    return usual[0] if usual else found[0]


def label_column(schema: Any, wanted: str | None, title: str, each: Wanted = None) -> Labels | None:
    """Find the column of labels; None if there is none.

    Args:
        wanted: its name, if it is known.
        each: names of columns of 0 and 1, one for each class, or patterns.

    Raises:
        UserError: the one that is named is not there.
    """
    if each is not None:
        columns = columns_of_classes(schema.names, each, title)
        return Labels(columns, columns if len(columns) > 1 else None)
    if wanted == "none":
        return None
    if wanted is not None and wanted not in schema.names:
        near = nearest(wanted, schema.names)
        raise UserError(
            f"{title}: data.label_column={shown(wanted)}: no such column{near}; {_columns(schema)}"
        )
    name = wanted or next((name for name in LABELS if name in schema.names), None)
    return Labels((name,), _class_names(schema, name)) if name else None


def _holds_images(kind: Any) -> bool:
    """Whether a type is bytes, or a struct with bytes."""
    if str(kind) in BINARY:
        return True
    at = kind.get_field_index("bytes") if str(kind).startswith("struct<") else -1
    return at >= 0 and str(kind.field(at).type) in BINARY


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face's description of a column has for its numbers."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    if not text or len(text) > LARGEST_FEATURES:
        return None
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        feature = json.loads(text)["info"]["features"][column]
        # Of a list, its items are described; one written before lists had a name is a list itself.
        feature = feature[0] if isinstance(feature, list) else feature
        names = feature.get("feature", feature)["names"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names) or None
    return None


def _columns(schema: Any) -> str:
    named = ", ".join(f"{shown(f.name)} ({str(f.type)[:40]})" for f in list(schema)[:MOST_NAMED])
    more = len(schema.names) - MOST_NAMED
    return f"it has {named or 'none'}" + (f" and {more} more" if more > 0 else "")
