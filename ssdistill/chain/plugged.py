"""Plug-ins that a stage uses: part of its hash, and checked where it is done."""

from collections.abc import Iterator
from typing import Any

from ssdistill.errors import UserError
from ssdistill.models.networks import NETWORKS
from ssdistill.settings.plugins import PROGRAM
from ssdistill.settings.registry import PROTOCOLS, REGISTRIES

KEY = "plugins"
"""Where the config of a stage says which plug-ins it uses."""


def with_plugins(config: dict[str, Any]) -> dict[str, Any]:
    """A stage's config with version and source hash of every plug-in it uses, if any."""
    used: dict[str, dict[str, str]] = {}
    for identity in _used(config):
        used |= identity
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
        if package.startswith(PROGRAM):
            raise UserError(
                f"{package.removeprefix(PROGRAM)[1:]} exists in the process of its program alone; "
                "put it in a package to run stages elsewhere"
            )
        raise UserError(
            f"has no plug-in {package}, or another version of it than the process that planned "
            "the stage; install the same version on every node"
        )


def _used(value: Any, key: str = "") -> Iterator[dict[str, dict[str, str]]]:
    """Identities of all kinds and networks of plug-ins in a config, at any depth."""
    if isinstance(value, dict):
        for registry in REGISTRIES:
            yield from _of_kind(registry, value.get("kind"))
        # An encoder that a teacher names has no library yet.
        is_network = key == "encoder" or "library" in value
        network = NETWORKS.get(value.get("name", "")) if is_network else None
        if network is not None and value.get("library", network.package) == network.package:
            yield network.identity()
        for name, item in value.items():
            if key == "evaluate" and item is not None:
                yield from _of_kind(PROTOCOLS, name)  # protocols have their kinds as keys
            yield from _used(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _used(item)


def _of_kind(registry: Any, kind: object) -> Iterator[dict[str, dict[str, str]]]:
    if plugin := registry.plugin_of(kind):
        yield plugin.identity(registry[kind])
