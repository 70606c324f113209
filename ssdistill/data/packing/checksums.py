"""sha256 sums of shards, in the format of ``sha256sum``, which checks them, too."""

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, one_line, shown

CHECKSUMS = "checksums.sha256"
PIECE = 1 << 20
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")


def verify(folder: Path, names: Iterable[str] | None = None) -> int:
    """Compare shards with their sums; return how many there are.

    Args:
        names: those to compare; None for all that have a sum.

    Raises:
        UserError: there are no sums, a shard has none, or its content is another.
    """
    path = folder / CHECKSUMS
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except (OSError, BadImage) as error:
        raise UserError(
            f"{path}: {one_line(error)}; without the checksums that ssdistill data pack writes, "
            "nothing can be verified"
        ) from error
    found = [_LINE.fullmatch(line) for line in text.splitlines()]
    sums = {match[2]: match[1] for match in found if match and match[2] != ".."}
    wanted = list(sums if names is None else names)
    if unknown := next((name for name in wanted if name not in sums), None):
        raise UserError(f"{path}: has no sum of {shown(unknown)}; pack the images again")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        actual = pool.map(lambda name: _sha256(folder / name), wanted)
        for name, found_sum in zip(wanted, actual, strict=True):
            if found_sum != sums[name]:
                raise UserError(
                    f"{folder / name}: {found_sum or 'cannot be read'}, but its sha256 in "
                    f"{CHECKSUMS} is another; copy it again, or delete it and pack again"
                )
    return len(wanted)


def _sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file; nothing if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except (OSError, BadImage):
        return ""
    return digest.hexdigest()
