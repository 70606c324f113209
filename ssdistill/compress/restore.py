"""Restore step: return to the uncompressed model."""

import copy
from pathlib import Path

from ssdistill.artifacts.description import DESCRIPTION, read_description
from ssdistill.artifacts.files import find_artifact
from ssdistill.compress import Context, Step
from ssdistill.errors import UserError
from ssdistill.models.model import Model


class Restore(Step):
    """Return to the model before the first compression step.

    A plan can so go on from the uncompressed model after it has tried something; outside a chain,
    :func:`uncompressed_parent` finds it for any compressed artifact.
    """

    kind = "restore"
    paper = "no method: the lineage that every artifact carries"
    makes = "restored"

    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``context.original``, whatever ``model`` is.

        Raises:
            UserError: there is no original.
        """
        if context.original is None:
            raise UserError("restore requires context.original")
        return copy.deepcopy(context.original)


def uncompressed_parent(path: str | Path) -> Path:
    """Find the uncompressed artifact that a compressed one descends from.

    It is looked for in the runs folder that the compressed one lies in, by the hash and the
    seed of its lineage, and known by the sha256 of its weights.

    Args:
        path: an artifact folder of a compression stage, or a file in it.

    Raises:
        UserError: no artifact, one that is not compressed, or a parent that is gone or is no
            longer what it was.
    """
    folder = find_artifact(path).resolve()
    description = read_description(folder)
    parent = description.original(folder)
    if parent is None:
        raise UserError(
            f"{folder / DESCRIPTION}: not a compressed model: its lineage names no original; "
            "name a compressed one"
        )
    name = f"*-{parent.digest[:8]}/s{parent.seed}/model/{DESCRIPTION}"
    stages = folder.parents[2]
    description_file = next((p for p in sorted(stages.glob(name))), None)
    if description_file is None:
        raise UserError(
            f"{folder}: its uncompressed parent {parent.digest[:8]}, seed {parent.seed}, is "
            f"missing from {stages}; copy its stage there"
        )
    sha256 = read_description(description_file.parent).sha256
    if sha256 != parent.sha256:
        raise UserError(
            f"{description_file.parent}: sha256 {sha256[:12]}…, but {folder} was made from "
            f"{parent.sha256[:12]}…; copy the stage that it was made from there"
        )
    return description_file.parent
