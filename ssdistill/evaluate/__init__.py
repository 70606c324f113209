"""Evaluate encoders with labels; no other room reads a label.

Every protocol is a function of this package: ``ssdistill.evaluate.linear(encoder, data)``. What
can be measured without labels belongs in ``label_free``.
"""

from importlib.util import find_spec
from typing import Any


def __getattr__(name: str) -> Any:
    # A file of this folder is itself; looking for protocols would open all of theirs.
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:
        from ssdistill.errors import nearest
        from ssdistill.settings.registry import PROTOCOLS

        if name in PROTOCOLS.classes:
            from ssdistill.evaluate.functions import protocol_function

            return protocol_function(name)
        raise AttributeError(
            f"unknown protocol '{name}'{nearest(name, PROTOCOLS.classes)}; "
            f"known: {', '.join(PROTOCOLS.classes)}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from ssdistill.settings.registry import PROTOCOLS

    return sorted({*globals(), *PROTOCOLS.classes})
