"""Images of a program as the ``data`` section of a config."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssdistill.data.python_data import ProgramImages, name_images
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.images import source_settings


def use_data(data: Any, test: Any = None, name: str | None = None) -> dict[str, Any]:
    """What a config says of images.

    Args:
        data: a kind of source, a path or a mapping, as ``ssdistill.probe`` takes them; an array or
            tensor (N, H, W), (N, H, W, C) or (N, C, H, W); a map-style dataset; a list of paths; a
            tuple of one of these and labels; or of two such tuples, to train and to test on.
        test: images to evaluate on; by default some are held out.
        name: of the images in the config; by default from their content.

    Raises:
        UserError: no images.
    """
    if isinstance(data, str | Path | Mapping):
        if test is not None:
            raise UserError(
                "test: a source has its own test images; set them in the settings of data"
            )
        settings = source_settings(data, {})
        return settings.model_dump(mode="json", exclude_defaults=True) | {"kind": settings.kind}
    if test is None and _is_pair(data) and all(map(_is_pair, data)):
        data, test = data
    train = _program_images(data, "data")
    held = None if test is None else _program_images(test, "test")
    name = name or f"images-{_key(train)}"
    name_images(name, train, held)
    return {"kind": "object", "name": name}


def _program_images(data: Any, name: str) -> ProgramImages:
    if _is_pair(data):
        return ProgramImages(data[0], data[1], name)
    images = ProgramImages(data, None, name)
    if not images.is_array:
        images.first  # noqa: B018  # no dataset is refused here
    return images


def _is_pair(data: Any) -> bool:
    """Whether data are two things, rather than a list of two paths."""
    pair = isinstance(data, tuple) and len(data) == 2  # a list of two is one of images
    return pair and not any(isinstance(item, str | os.PathLike) for item in data)


def _key(images: ProgramImages) -> str:
    if images.is_array or not isinstance(images.first, str | os.PathLike):
        return images.identity[:8]
    paths: Sequence[Any] = images.images
    text = "\0".join(os.fspath(path) for path in paths)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
