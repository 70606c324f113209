"""Use each frame as a separate image, if ``data.frames`` is set to all."""

import hashlib
import json

from ssdistill.data.frames import FrameSplit
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError


def framed(source: Source, name: str, split: RawSplit) -> RawSplit:
    """Return the frames of a split of ``source``.

    Raises:
        UserError: the source holds arrays.
    """
    # Count frames only once, however often this is called.
    splits = vars(source).setdefault("_framed", {})
    if (name, source.reading) in splits:
        return splits[name, source.reading]
    raw = split.encoded()
    if raw is None:
        raise UserError(
            f"data.frames=all: data.kind={source.kind} holds arrays, not encoded images; set "
            "data.frames=first"
        )
    folder, cache = source.reading.folder, None
    if folder is not None:
        text = json.dumps([source.kind, source.settings, name], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        cache = folder / f"{source.kind}-{name}-frames-{key}.npz"
    splits[name, source.reading] = FrameSplit(raw, cache, keeps=source.reading.keeps)
    return splits[name, source.reading]
