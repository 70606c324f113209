"""Names of shards from a pattern in braces, as shells and WebDataset write them."""

import itertools
import re

from ssdistill.errors import UserError, shortened

MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Return ``train-{000..012}.tar`` or ``{train,extra}.tar`` as the names it stands for.

    Numbers keep the width of the first; several pairs of braces give all combinations, the last
    counting fastest.

    Raises:
        UserError: more than :data:`MOST_SHARDS` names, or braces that stand for none.
    """
    literals, choices, at, count = list[str](), list[list[str]](), 0, 1
    for found in _BRACES.finditer(pattern):
        first, last, words = found.groups()
        count *= abs(int(last) - int(first)) + 1 if words is None else words.count(",") + 1
        if count > MOST_SHARDS:
            raise UserError(
                f"data.path={shortened(pattern)}: stands for more than {MOST_SHARDS} shards; "
                "correct the numbers in its braces"
            )
        literals.append(pattern[at : found.start()])
        choices.append(_numbers(first, last) if words is None else words.split(","))
        at = found.end()
    if any(brace in literal for literal in (*literals, pattern[at:]) for brace in "{}"):
        raise UserError(
            f"data.path={shortened(pattern)}: braces hold numbers {{000..012}} or words {{a,b}}; "
            "correct them"
        )
    return [
        "".join(map("".join, zip(literals, chosen, strict=True))) + pattern[at:]
        for chosen in itertools.product(*choices)
    ]


def _numbers(first: str, last: str) -> list[str]:
    step = 1 if int(last) >= int(first) else -1
    width = len(first)
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
