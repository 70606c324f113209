"""Whether a disk has the space for images, and what is said if not."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError
from ssdistill.settings import Size, height_width


@contextmanager
def plain_disk_errors(root: Path) -> Iterator[None]:
    """Within the context, a disk that cannot be written to is a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space or choose another folder"
        else:
            reason = f"{error.strerror or error}; choose another folder"
        raise UserError(f"cannot write the image store in {root}: {reason}") from error


def check_space(folder: Path, raw: RawSplit, image_size: Size, pixel_bytes: int = 3) -> None:
    """Check that a folder has space for the images of a split.

    Args:
        pixel_bytes: of one pixel, all channels.

    Raises:
        UserError: it has not.
    """
    height, width = height_width(image_size)
    needed, free = len(raw) * height * width * pixel_bytes, shutil.disk_usage(folder).free
    if needed > free:
        size = image_size if isinstance(image_size, int) else list(image_size)
        raise UserError(
            f"data.image_size={size}: {len(raw)} images take {needed / 1e9:,.1f} GB, but "
            f"only {free / 1e9:,.1f} GB are free in {folder}; lower data.image_size, or choose "
            "another folder with --runs"
        )
