"""What ``data.verify`` does: everything that is known of images is read again."""

import json
import logging
import os
import shutil
from pathlib import Path

from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.image_index import verified
from ssdistill.errors import shown

log = logging.getLogger(__name__)


def replace_if_other(folder: Path, again: Path, meta: str, title: str) -> None:
    """Compare a store with one made of the same images again; keep the new one if it differs.

    Args:
        again: folder of the new one; it is gone afterwards.
        meta: name of the file with the fingerprint.
        title: of the images, in the message.
    """
    if _fingerprint(folder / meta) == _fingerprint(again / meta):
        shutil.rmtree(again)
        return
    shutil.rmtree(folder)
    os.rename(again, folder)
    log.warning(
        "%s: pixels changed, but not the sizes and times of the files; they are stored anew",
        shown(title),
    )


def _fingerprint(path: Path) -> str:
    return json.loads(path.read_text())["fingerprint"]


def verify_index(raw: EncodedSplit, folder: Path, *, bands: bool = False) -> None:
    """Read again what an index says of images, if there is one; warn of what has changed."""
    rows = verified(raw, folder, bands=bands)
    if rows is not None and len(rows):
        log.warning(
            "%s: %d of %d images changed, but not their sizes and times, first %s; the index is "
            "corrected",
            *(shown(raw.title), len(rows), len(raw), shown(raw.name(int(rows[0])))),
        )
