"""What the rows of ``compare`` and the ``teachers`` inherit from the sections of an experiment."""

from typing import Any

from ssdistill.experiment.merging import merge
from ssdistill.experiment.sections import kind_alone

LENGTHS = {"steps", "epochs"}
OWN = {"extend"}
"""Settings that a row never inherits: it is another training."""


def complete_rows(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in the settings that rows and teachers inherit.

    - A row of ``compare`` has those of ``distill``, or of ``pretrain`` if it pretrains.
    - A teacher of ``teachers`` without a ``kind`` has those of ``teacher``, and its ``pretrain``
      those of the experiment's.
    - So has the ``pretrain`` of a single ``teacher``.
    """
    complete = dict(tree)
    teacher = tree.get("teacher")
    if isinstance(teacher, dict):
        complete["teacher"] = _with_shared_pretrain(tree, teacher)
        if tree.get("teachers") and teacher.keys() <= {"encoder"}:
            # The encoder of a single teacher may come from an extended file.
            del complete["teacher"]
    for section, complete_row in (("compare", _compared_row), ("teachers", _one_of_teachers)):
        if isinstance(tree.get(section), dict):
            rows = tree[section].items()
            complete[section] = {name: complete_row(tree, row) for name, row in rows}
    return complete


def _compared_row(tree: dict[str, Any], row: Any) -> Any:
    row = {} if row is None else row
    if not isinstance(row, dict):
        return row
    if row.get("pretrain") is not None:
        return _with_shared_pretrain(tree, row)
    distill = tree.get("distill")
    return {**_without_length(distill, row), **row} if isinstance(distill, dict) else row


def _one_of_teachers(tree: dict[str, Any], row: Any) -> Any:
    row = {} if row is None else row
    if not isinstance(row, dict):
        return row
    if "kind" not in row:
        teacher = kind_alone(tree.get("teacher"))
        row = {**(teacher if isinstance(teacher, dict) else {}), **row}
    return _with_shared_pretrain(tree, row)


def _with_shared_pretrain(tree: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with its ``pretrain``, if any, over that of the experiment."""
    if row.get("pretrain") is None:
        return row
    own = kind_alone(row["pretrain"])
    shared = _without_length(tree.get("pretrain") or {}, own)
    # No notices: every row would report that its method differs.
    return merge({"pretrain": shared}, {**row, "pretrain": own}, [])


def _without_length(shared: Any, own: Any) -> Any:
    """``shared`` without what is never inherited, and without its length if ``own`` has one."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return shared
    aside = OWN | (LENGTHS if LENGTHS & own.keys() else set())
    return {key: value for key, value in shared.items() if key not in aside}
