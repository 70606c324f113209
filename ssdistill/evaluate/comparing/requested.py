"""The protocols that are requested by name, with their settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssdistill.errors import UserError, nearest, shortened
from ssdistill.evaluate.functions import build_protocol
from ssdistill.evaluate.protocols import Protocol
from ssdistill.report.tables.columns import FIRST
from ssdistill.settings.registry import PROTOCOLS


def ask(
    names: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Protocol]:
    """The protocols of these names, each once, in the order of tables.

    Args:
        names: kinds, or kinds with a preset (``knn_dinov2``); None asks those that a config
            asks by default.
        settings: by name, what is to differ from a protocol's defaults.

    Raises:
        UserError: an unknown name or setting, or settings of a protocol that is not requested.
    """
    settings = settings or {}
    if names is None:
        names = [kind for kind, cls in PROTOCOLS.classes.items() if cls.by_default]
    if isinstance(names, str) or not isinstance(names, Iterable):
        written = shortened(repr(names))
        raise UserError(f"protocols={written}: expected a list of names, such as ['linear']")
    # The first is the one that is drawn, and that stands first in every table.
    names = sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    if not names:
        raise UserError("no protocol requested; name at least one, such as linear")
    for name, own in settings.items():
        if not isinstance(own, Mapping):
            raise UserError(f"{name}={own}: expected settings as protocol.key=value")
        if name not in names:
            kind, _ = _kind_and_preset(name)
            raise UserError(
                f"{name}.{next(iter(own))}: {kind} is not one of the requested protocols "
                f"{', '.join(names)}; add it to --protocols"
            )
    protocols = [_protocol(name, settings.get(name, {})) for name in names]
    full = [protocol.name for protocol in protocols]
    if twice := [name for name in full if full.count(name) > 1]:
        raise UserError(f"protocol {twice[0]} is listed twice; list it once")
    return protocols


def _protocol(name: str, settings: Mapping[str, Any]) -> Protocol:
    kind, preset = _kind_and_preset(name)
    return build_protocol(kind, {**({"preset": preset} if preset else {}), **settings}, name)


def _kind_and_preset(name: str) -> tuple[str, str | None]:
    """A protocol's full name, taken apart.

    Raises:
        UserError: there is none of this name; the nearest one is named.
    """
    classes = PROTOCOLS.classes
    known = [
        f"{kind}_{preset}" if preset else kind
        for kind, cls in classes.items()
        for preset in (None, *cls.presets)
    ]
    if name not in known:
        raise UserError(f"unknown protocol '{name}'{nearest(name, known)}; known: "
                        f"{', '.join(classes)}")  # fmt: skip
    if name in classes:
        return name, None
    kind = max((k for k in classes if name.startswith(f"{k}_")), key=len)
    return kind, name.removeprefix(f"{kind}_")
