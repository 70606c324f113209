"""Parse settings of the data and of protocols."""

from collections.abc import Iterable
from typing import Any

from ssdistill.errors import UserError
from ssdistill.experiment.reading import parse_override


def parse_words(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """``data.path=x`` and ``knn.k=5`` as settings by their first key.

    Raises:
        UserError: a word without ``=``, or without a key below another.
    """
    tree: dict[str, dict[str, Any]] = {}
    for word in words:
        for section, values in parse_override(word).items():
            if not isinstance(values, dict):
                raise UserError(
                    f"invalid setting '{word}': expected data.key=value or protocol.key=value"
                )
            tree.setdefault(section, {}).update(values)
    return tree
