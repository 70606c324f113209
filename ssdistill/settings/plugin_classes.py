"""Check classes of plug-ins before they are added."""

import re
from collections.abc import Callable
from typing import Any

from ssdistill.errors import UserError, one_line
from ssdistill.settings.plugins import package_of

KIND = r"[a-z][a-z0-9_]{0,63}"
"""Form of the kinds of plug-ins."""


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
