"""Config keys, and sentences of packaged configs, that were others in earlier releases."""

from typing import Any

from ssdistill.errors import UserError

RENAMED = {"evaluate.gauge_images": "evaluate.label_free_images"}
"""Old key: new key of the same section. Only these may be written the old way."""
DEVIATIONS = {
    "pixels are normalized with the mean and deviation of the training images": (
        "pixels are normalised by the statistics of the training pictures at hand"
    ),
    "one device instead of two with half the batch each; their batch norms were synchronized": (
        "one device instead of two with half the batch each; their batch norms were synchronised"
    ),
    "one device instead of 4 with 64 images each; their batch norms were synchronized": (
        "one device instead of 4 with 64 pictures each; their batch norms were synchronised"
    ),
}
"""Sentence of ``paper.deviations``: how version 0.1.0 put it, which hashes of experiments cover."""


def with_released_deviations(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` as it is hashed: another wording must not give its experiment another folder."""
    paper = config.get("paper")
    if not paper:
        return config
    deviations = [DEVIATIONS.get(said, said) for said in paper["deviations"]]
    return {**config, "paper": {**paper, "deviations": deviations}}


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
