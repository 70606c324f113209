"""Check the disk space for images, and report errors of the disk."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError
from ssdistill.settings import Size, height_width


@contextmanager
def report_disk_errors(root: Path) -> Iterator[None]:
    """Turn errors of the disk within the context into UserErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space or choose another folder"
        else:
            reason = f"{error.strerror or error}; choose another folder"
        raise UserError(f"cannot write the image store in {root}: {reason}") from error


def check_space(folder: Path, raw: RawSplit, image_size: Size, pixel_bytes: int = 3) -> None:
    """Check that the stored images of a split fit on the disk of ``folder``.

    Args:
        pixel_bytes: bytes of one pixel, over all channels.

    Raises:
        UserError: they do not fit.
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
