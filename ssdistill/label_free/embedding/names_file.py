"""Names beside the rows of a file that has no place for them: one line for each row."""

import re
from collections.abc import Sequence
from pathlib import Path

from ssdistill.label_free.embedding.parts import Part, all_names

BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""All that ends a line for ``str.splitlines``."""


def write_names(path: Path, parts: Sequence[Part]) -> None:
    """Write the names in order, in UTF-8; what would end a line is escaped, such as ``\\n``."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for _, names in all_names(parts):
            file.writelines(f"{_on_one_line(name)}\n" for name in names)


def _on_one_line(name: str) -> str:
    return BREAKS.sub(lambda match: match[0].encode("unicode_escape").decode(), name)
