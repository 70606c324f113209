"""Find the columns of encoded images and labels in a table."""

import json
from contextlib import suppress
from typing import Any

from ssdistill.data.list_columns import Wanted, columns_of_classes
from ssdistill.data.table_split import Labels
from ssdistill.errors import UserError, nearest, shown

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
LABELS = ("label", "labels", "class", "target", "category", "cls", "fine_label", "y")
"""Usual names, most likely first."""
MOST_NAMED = 20
LARGEST_FEATURES = 1 << 24
"""Maximum size of Hugging Face's description of columns, in bytes."""
BINARY = ("binary", "large_binary", "binary_view")


def image_column(schema: Any, requested: str | None, title: str) -> str:
    """Find the column of encoded images: bytes, or a struct with a field ``bytes``.

    Args:
        schema: a ``pyarrow.Schema``.
        requested: its name, if set.
        title: of the table in messages.

    Raises:
        UserError: there is no such column, or several.
    """
    columns = [field.name for field in schema if _holds_images(field.type)]
    if requested is not None:
        if requested in columns:
            return requested
        kind = requested in schema.names and schema.field(requested).type
        near = nearest(requested, columns)
        reason = f"it is {kind}, not bytes" if kind else f"no such column{near}"
        raise UserError(f"{title}: data.column={shown(requested)}: {reason}; {_columns(schema)}")
    usual = [name for name in IMAGES if name in columns]
    if len(columns) > 1 and not usual:
        named = ", ".join(map(shown, columns[:MOST_NAMED]))
        raise UserError(
            f"{title}: several columns hold bytes ({named}); set data.column to that of the images"
        )
    if not columns:
        raise UserError(
            f"{title}: no column holds encoded images (bytes, or a struct with a field bytes); "
            f"{_columns(schema)}"
        )
    return usual[0] if usual else columns[0]


def label_column(
    schema: Any, requested: str | None, title: str, each: Wanted = None
) -> Labels | None:
    """Find the columns of labels; None if there are none.

    Args:
        requested: its name, if set; ``"none"`` means no such column.
        each: names or patterns of columns of 0 and 1, one for each class.

    Raises:
        UserError: the requested column does not exist.
    """
    if each is not None:
        names = [field.name for field in schema if not _holds_images(field.type)]
        columns = columns_of_classes(names, each, title)
        return Labels(columns, columns if len(columns) > 1 else None)
    if requested == "none":
        return None
    if requested is not None and requested not in schema.names:
        near = nearest(requested, schema.names)
        raise UserError(
            f"{title}: data.label_column={shown(requested)}: no such column{near}; "
            f"{_columns(schema)}"
        )
    name = requested or next((name for name in LABELS if name in schema.names), None)
    return Labels((name,), _class_names(schema, name)) if name else None


def _holds_images(kind: Any) -> bool:
    """Whether a type is bytes, or a struct with a field ``bytes``."""
    if str(kind) in BINARY:
        return True
    at = kind.get_field_index("bytes") if str(kind).startswith("struct<") else -1
    return at >= 0 and str(kind.field(at).type) in BINARY


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the class names of a column, from Hugging Face's description of it."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    if not text or len(text) > LARGEST_FEATURES:
        return None
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        feature = json.loads(text)["info"]["features"][column]
        # For a column of lists, use the description of its items; old files write it as a list.
        feature = feature[0] if isinstance(feature, list) else feature
        names = feature.get("feature", feature)["names"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names) or None
    return None


def _columns(schema: Any) -> str:
    named = ", ".join(f"{shown(f.name)} ({str(f.type)[:40]})" for f in list(schema)[:MOST_NAMED])
    more = len(schema.names) - MOST_NAMED
    return f"it has {named or 'none'}" + (f" and {more} more" if more > 0 else "")
