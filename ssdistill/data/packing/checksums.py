"""Verify sha256 checksums of shards, in the format of ``sha256sum``."""

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, shown, system_reason

CHECKSUMS = "checksums.sha256"
PIECE = 1 << 20
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")


def verify(folder: Path, names: Iterable[str] | None = None) -> int:
    """Verify the checksums of shards; return the number of shards.

    Args:
        names: of the shards to verify; None for all with a checksum.

    Raises:
        UserError: there are no checksums, a shard has none, or its content differs.
    """
    path = folder / CHECKSUMS
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except (OSError, BadImage) as error:
        raise UserError(
            f"{path}: {system_reason(error)}; verification requires the checksums that ssdistill "
            "data pack writes; pack the images again"
        ) from error
    matches = [_LINE.fullmatch(line) for line in text.splitlines()]
    sums = {match[2]: match[1] for match in matches if match and match[2] != ".."}
    selected = list(sums if names is None else names)
    if missing := next((name for name in selected if name not in sums), None):
        raise UserError(f"{path}: no checksum for {shown(missing)}; pack the images again")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        actual = pool.map(lambda name: _sha256(folder / name), selected)
        for name, digest in zip(selected, actual, strict=True):
            if digest != sums[name]:
                problem = f"its sha256 differs from {CHECKSUMS}" if digest else "cannot be read"
                raise UserError(
                    f"{folder / name}: {problem}; copy it again, or delete it and pack again"
                )
    return len(selected)


def _sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except (OSError, BadImage):
        return ""
    return digest.hexdigest()
