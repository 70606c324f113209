"""Config keys of earlier releases that have another name now."""

from typing import Any

from ssdistill.errors import UserError

RENAMED = {"evaluate.gauge_images": "evaluate.label_free_images"}
"""Old key: new key of the same section. Only these may be written the old way."""


def with_new_keys(tree: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """``tree`` with every old key under its new name, and a notice for each.

    Raises:
        UserError: a mapping has a key under both names.
    """
    for old, new in RENAMED.items():
        section, old_key = old.rsplit(".", 1)
        new_key = new.rsplit(".", 1)[1]
        settings = tree.get(section)
        if not isinstance(settings, dict) or old_key not in settings:
            continue
        if new_key in settings:
            raise UserError(f"{old} is the old name of {new}; remove one of them")
        renamed = {new_key if key == old_key else key: value for key, value in settings.items()}
        tree = {**tree, section: renamed}
        notice = f"{old} is now called {new}; the old name still works"
        if notice not in notices:
            notices.append(notice)
    return tree
