"""What names images on the command line: a config, a path, a kind, and settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssdistill.errors import UserError

if TYPE_CHECKING:
    from ssdistill.data.settings import StoreSettings

SOURCE = (
    "a config (a YAML file or a packaged one), a folder, a file, or a source kind; settings are "
    "written key=value, such as kind=folder path=photos"
)


def data_settings(words: Sequence[str]) -> "StoreSettings":
    """Return the settings of the images that some words name.

    Args:
        words: at most one name, and settings as ``key=value`` or ``data.key=value``.

    Raises:
        UserError: no name and no ``kind=``, several names, or settings that the source has not.
    """
    from ssdistill.evaluate.opening.images import source_settings
    from ssdistill.experiment.reading import parse_override

    names = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = [f"data.{w.removeprefix('data.')}" for w in words if w not in names]
    own = {}
    for override in overrides:
        own |= parse_override(override)["data"]
    if len(names) > 1:
        raise UserError(f"data: several sources ({', '.join(names)}); name one")
    if not names and "kind" not in own:
        raise UserError(f"data: name the images: {SOURCE}")
    if names and _is_config(names[0]):
        from ssdistill.experiment.reading import load_experiment

        return load_experiment(names[0], overrides)[0].data
    return source_settings(names[0] if names else own.pop("kind"), own)


def _is_config(word: str) -> bool:
    from ssdistill.experiment.reading import find_config
    from ssdistill.settings.registry import SOURCES

    if word in SOURCES.classes or Path(word).is_dir():
        return False
    if Path(word).suffix in (".yaml", ".yml"):
        return True
    try:
        return Path(find_config(word)).suffix in (".yaml", ".yml")
    except UserError:
        return False
