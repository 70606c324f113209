"""Find the columns of a list by their usual names."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from ssdistill.errors import UserError, nearest, shortened, shown

USUAL = {
    "path": (
        *("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
        *("img", "imgpath", "imgname", "imagefilename", "name", "fname"),
    ),
    "label": ("label", "class", "classname", "category", "target", "labels", "classid", "y"),
    "split": ("split", "set", "subset", "partition"),
    "weight": ("weight", "sampleweight", "weights"),
    "group": ("group", "groupid", "patient", "patientid", "subject", "subjectid"),
}
"""Names by role, in lower case without ``_``, ``-`` and spaces; most likely first."""
HEADLESS = ("path", "label")
"""Roles of the columns of a list without a header."""
MOST_NAMED = 20
Wanted = str | Annotated[tuple[str, ...], Field(min_length=1)] | None
"""Names of columns, or patterns with ``*``; None for none."""


@dataclass(frozen=True)
class Columns:
    """Columns by role: their positions, and their names if the list has a header."""

    position: dict[str, int]
    name: dict[str, str]

    def __contains__(self, role: str) -> bool:
        return role in self.position

    def __str__(self) -> str:
        return ", ".join(f"{role} in column '{shown(name)}'" for role, name in self.name.items())


def has_header(first: Sequence[str], requested: dict[str, str | None]) -> bool:
    """Whether the first row of a list names its columns."""
    usual = {name for names in USUAL.values() for name in names}
    cells = {cell.strip() for cell in first}
    return bool({_simplified(cell) for cell in cells} & usual or cells & set(requested.values()))


def find_columns(names: Sequence[str], requested: dict[str, str | None], title: str) -> Columns:
    """Find the column of each role.

    Args:
        names: of all columns.
        requested: column names by role; None means a usual name, ``"none"`` no such column.
        title: of the list in messages.

    Raises:
        UserError: a requested column is missing, or no column of paths was found.
    """
    names = [name.strip() for name in names]
    position: dict[str, int] = {}
    for role, usual in USUAL.items():
        name = requested.get(role)
        if name == "none" and role != "path" and name not in names:
            continue
        if name is None:
            plain = [_simplified(column) for column in names]
            at = next((plain.index(word) for word in usual if word in plain), None)
        elif name in names:
            at = names.index(name)
        else:
            raise UserError(
                f"data.{role}_column={shown(name)}: {title} has no such column"
                f"{nearest(name, names)}; it has {_listed(names)}"
            )
        if at in position.values():
            if name is not None:
                other = next(key for key in position if position[key] == at)
                raise UserError(
                    f"data.{role}_column={shown(name)}: {title} has the {other} in this column; "
                    f"set another, or data.{other}_column"
                )
        elif at is not None:
            position[role] = at
    if "path" not in position:
        raise UserError(
            f"{title}: no column is named path, file or image; it has {_listed(names)}; set "
            "data.path_column"
        )
    return Columns(position, {role: names[at] for role, at in position.items()})


def one_way_to_label(label_column: str | None, label_columns: Wanted) -> Wanted:
    """Return the columns of classes; UserError if a column of labels is named, too."""
    if label_columns is not None and label_column not in (None, "none"):
        raise UserError(
            f"data.label_column={shown(label_column)} and data.label_columns="
            f"{shortened(label_columns)} are both set; set only one of them"
        )
    return label_columns


def columns_of_classes(
    names: Sequence[str], requested: str | Sequence[str], title: str
) -> tuple[str, ...]:
    """Return the columns that hold 0 or 1 for one class each, in the requested order.

    Args:
        names: of all columns without another role.
        requested: names, or patterns with ``*``.
        title: of the list in messages.

    Raises:
        UserError: no column matches a name.
    """
    columns: dict[str, None] = {}
    for name in (requested,) if isinstance(requested, str) else requested:
        matching = [name] if name in names else [n for n in names if fnmatchcase(n, name)]
        if not matching:
            raise UserError(
                f"data.label_columns={shown(name)}: {title} has no such column"
                f"{nearest(name, names)}; it has {_listed(names)}"
            )
        if repeated := next((match for match in matching if names.count(match) > 1), None):
            raise UserError(
                f"data.label_columns={shown(name)}: {title} has several columns named "
                f"{shown(repeated)}; rename them"
            )
        columns |= dict.fromkeys(matching)
    return tuple(columns)


def _simplified(name: str) -> str:
    return "".join(c for c in name.strip().lower() if c not in "_- ")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(shown(name)[:60] for name in names[:MOST_NAMED]) + more
