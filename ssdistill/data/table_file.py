"""Shared parts of table readers: file state, damage, and encoded values."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, one_line, shown, system_reason


def encoded(value: Any) -> bytes:
    """Return the bytes of a value in a column of images.

    Raises:
        BadImage: the value has none. A path instead of bytes is never followed: it could lead
            anywhere.
    """
    content = value
    if value.is_valid and hasattr(value, "keys"):
        content = value["bytes"]
        if not content.is_valid and "path" in value and value["path"].is_valid:
            raise BadImage("a path without bytes; save the images in the table, not their paths")
    if not content.is_valid:
        raise BadImage("its row has no image")
    return content.as_py()


def checked(schema: Any) -> Any:
    """Return a schema; raise whatever pyarrow raises if a column name is not valid text."""
    for field in schema:
        str(field.type)
        assert isinstance(field.name, str)
    return schema


def file_state(path: Path) -> str:
    """Return size and time of a file, as text.

    Raises:
        UserError: the file cannot be opened, or is not regular.
    """
    try:
        with open_regular(path):
            status = path.stat()
    except BadImage as error:
        raise UserError(f"data.path={shown(path)}: {error.reason}; pass a file") from error
    except OSError as error:
        reason = system_reason(error)
        raise UserError(f"data.path={shown(path)}: {reason}; check the path") from error
    return f"{status.st_size}\0{status.st_mtime_ns}"


@contextmanager
def report_damage(path: Path) -> Iterator[None]:
    """Turn errors of pyarrow within the context into UserErrors that name the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data.path={shown(path)}: cannot read this file ({one_line(error)}); write it again"
        ) from error
