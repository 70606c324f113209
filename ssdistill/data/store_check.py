"""Compare stores and indices with images that are read again, for ``data.verify``."""

import json
import logging
import os
import shutil
from pathlib import Path

from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.image_index import verified
from ssdistill.errors import shown

log = logging.getLogger(__name__)


def replace_if_different(folder: Path, again: Path, meta: str, title: str) -> None:
    """Compare a store with a new one of the same images; keep the new one if it differs.

    Args:
        again: folder of the new store, which is moved or deleted.
        meta: name of the file that contains the fingerprint.
        title: of the images in the message.
    """
    if _fingerprint(folder / meta) == _fingerprint(again / meta):
        shutil.rmtree(again)
        return
    shutil.rmtree(folder)
    os.rename(again, folder)
    log.warning(
        "%s: pixels changed, but not the sizes and times of the files; they are stored again",
        shown(title),
    )


def _fingerprint(path: Path) -> str:
    return json.loads(path.read_text())["fingerprint"]


def verify_index(raw: EncodedSplit, folder: Path, *, bands: bool = False) -> None:
    """Read all images of an index again, if there is one; warn about those that changed."""
    rows = verified(raw, folder, bands=bands)
    if rows is not None and len(rows):
        log.warning(
            "%s: %d of %d images changed, but not their sizes and times, first %s; the index is "
            "corrected",
            *(shown(raw.title), len(rows), len(raw), shown(raw.name(int(rows[0])))),
        )
