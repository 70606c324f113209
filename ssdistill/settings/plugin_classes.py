"""Add classes of plug-ins to those of this package, once they have been checked."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ssdistill.errors import UserError, one_line
from ssdistill.settings.plugins import FAILED, INSTALLED, package_of, plugins

KIND = r"[a-z][a-z0-9_]{0,63}"
"""Form of the kinds of plug-ins."""


def add_classes(
    by_kind: dict[str, Any], base: type, noun: str, settings_of: Callable[[Any], Any]
) -> None:
    """Add the classes of all plug-ins that are derived from a base.

    What cannot be used of an installed package that nobody has named is noted in ``FAILED``.

    Args:
        by_kind: classes by their kinds, changed in place.
        noun: what one of them is called in messages.
        settings_of: makes the settings of a class.

    Raises:
        UserError: of other packages, a class that cannot be used or whose kind is another's.
    """
    for plugin in plugins():
        for cls in plugin.classes():
            if not issubclass(cls, base) or "kind" not in vars(cls):
                continue
            try:
                check_class(cls, partial(settings_of, cls))
                known = by_kind.setdefault(cls.kind, cls)
                if known is not cls:
                    raise UserError(
                        f"plug-in {package_of(cls)}: the kind '{cls.kind}' of {cls.__qualname__} "
                        f"is that of a {noun} of {package_of(known)}; choose another kind"
                    )
            except UserError as error:
                if plugin.package not in INSTALLED:
                    raise
                FAILED[plugin.package] = str(error).partition(": ")[2]


def check_class(cls: Any, make_settings: Callable[[], Any]) -> None:
    """Refuse the class of a plug-in from which no settings can be made.

    Args:
        make_settings: makes them.

    Raises:
        UserError: a kind that is no name, or a keyword without a type.
    """
    whose = f"plug-in {package_of(cls)}: {cls.__qualname__}"
    if not isinstance(cls.kind, str) or not re.fullmatch(KIND, cls.kind):
        raise UserError(
            f"{whose}: kind={cls.kind!r}: use lower-case letters, digits and _, such as my_kind"
        )
    try:
        make_settings()
    except KeyError as error:
        raise UserError(f"{whose}: the argument {error.args[0]} has no type; annotate it") from None
    except Exception as error:  # of annotations and defaults of others
        raise UserError(
            f"{whose}: no settings can be made of its arguments ({one_line(error)}); correct "
            "their types and defaults"
        ) from error
