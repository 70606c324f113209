"""Expand brace patterns of shard names, as in shells and WebDataset."""

import itertools
import re

from ssdistill.errors import UserError, shortened

MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Expand a pattern such as ``train-{000..012}.tar`` or ``{train,extra}.tar`` to names.

    Numbers are padded to the width of the first. Several pairs of braces yield all combinations,
    the last varying fastest.

    Raises:
        UserError: the pattern has more than :data:`MOST_SHARDS` names, or invalid braces.
    """
    literals, choices, at, count = list[str](), list[list[str]](), 0, 1
    for match in _BRACES.finditer(pattern):
        first, last, words = match.groups()
        count *= abs(int(last) - int(first)) + 1 if words is None else words.count(",") + 1
        if count > MOST_SHARDS:
            raise UserError(
                f"data.path={shortened(pattern)}: expands to more than {MOST_SHARDS} shards; "
                "correct the numbers in braces"
            )
        literals.append(pattern[at : match.start()])
        choices.append(_numbers(first, last) if words is None else words.split(","))
        at = match.end()
    if any(brace in literal for literal in (*literals, pattern[at:]) for brace in "{}"):
        raise UserError(
            f"data.path={shortened(pattern)}: invalid braces; write numbers as {{000..012}}, words "
            "as {{a,b}}"
        )
    return [
        "".join(map("".join, zip(literals, chosen, strict=True))) + pattern[at:]
        for chosen in itertools.product(*choices)
    ]


def _numbers(first: str, last: str) -> list[str]:
    step = 1 if int(last) >= int(first) else -1
    width = len(first)
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
