"""Images of a program as the ``data`` section of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdistill.data.named_images import object_settings
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.images import source_settings


def use_data(data: Any, test: Any = None, name: str | None = None) -> dict[str, Any]:
    """What a config says of images.

    Args:
        data: a kind of source, a path or a mapping, as ``ssdistill.probe`` takes them; an array or
            tensor (N, H, W), (N, H, W, C) or (N, C, H, W); a map-style dataset; a list of paths; a
            tuple of one of these and labels; or of two such tuples, or two datasets, to train and
            to test on.
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
    return object_settings(data, test, name)
