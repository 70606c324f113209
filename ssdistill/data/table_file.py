"""What files of tables have in common: their state, their damage, their bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, one_line, shown


def encoded(value: Any) -> bytes:
    """Return the bytes of one value of a column of images.

    Raises:
        BadImage: there are none. A path in their place is never followed: it could lead anywhere.
    """
    content = value
    if value.is_valid and hasattr(value, "keys"):
        content = value["bytes"]
        if not content.is_valid and "path" in value and value["path"].is_valid:
            raise BadImage("a path without bytes; save the images themselves in the table")
    if not content.is_valid:
        raise BadImage("no image in this row")
    return content.as_py()


def checked(schema: Any) -> Any:
    """Return a schema; raise whatever pyarrow raises where a name of it is no text."""
    for field in schema:
        str(field.type)
        assert isinstance(field.name, str)
    return schema


def file_state(path: Path) -> str:
    """Return size and time of a file.

    Raises:
        UserError: it cannot be opened, or is no regular file.
    """
    try:
        with open_regular(path):
            status = path.stat()
    except BadImage as error:
        raise UserError(f"data.path={shown(path)}: {error.reason}; name a file") from error
    except OSError as error:
        raise UserError(f"data.path={shown(path)}: {error.strerror or one_line(error)}") from error
    return f"{status.st_size}\0{status.st_mtime_ns}"


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Within the context, whatever pyarrow raises is a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data.path={shown(path)}: cannot read this file ({one_line(error)}); write it again"
        ) from error
