"""Plug-ins that a stage uses: part of its hash, and checked where it is done."""

from collections.abc import Iterator
from typing import Any

from ssdistill.errors import UserError
from ssdistill.settings.plugins import PROGRAM, Plugin
from ssdistill.settings.registry import PROTOCOLS, REGISTRIES

KEY = "plugins"
"""Where the config of a stage says which plug-ins it uses."""


def with_plugins(config: dict[str, Any]) -> dict[str, Any]:
    """A stage's config with version and source hash of every plug-in it uses, if any."""
    used = {plugin.package: plugin.identity() for plugin in _used(config)}
    return {**config, KEY: dict(sorted(used.items()))} if used else config


def check_plugins(config: dict[str, Any]) -> None:
    """Check that this process has the plug-ins of a stage that another one planned.

    Raises:
        UserError: one is missing here, or another version of it.
    """
    here = with_plugins({key: value for key, value in config.items() if key != KEY}).get(KEY, {})
    for package, identity in config.get(KEY, {}).items():
        if here.get(package) == identity:
            continue
        if package == PROGRAM:
            raise UserError(
                "classes of a script or a notebook exist in its process alone; put them in a "
                "package to run stages elsewhere (see docs/plugins.md)"
            )
        raise UserError(
            f"has no plug-in {package}, or another version of it than the process that planned "
            "the stage; install the same version on every node"
        )


def _used(value: Any, key: str = "") -> Iterator[Plugin]:
    """The plug-ins of every kind that is named in a config, at any depth."""
    if isinstance(value, dict):
        for registry in REGISTRIES:
            if plugin := registry.plugin_of(value.get("kind")):
                yield plugin
        for name, item in value.items():
            # Protocols have their kinds as keys.
            plugin = PROTOCOLS.plugin_of(name) if key == "evaluate" and item is not None else None
            yield from [plugin] if plugin else []
            yield from _used(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _used(item)
