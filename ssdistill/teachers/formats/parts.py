"""Split a checkpoint into backbone (timm's keys), projector and the rest."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.teachers.formats.layouts import AVERAGES, BranchName, find_place, recognize
from ssdistill.teachers.formats.names import lacks_first_relu, to_timm


@dataclass(frozen=True)
class Parts:
    """Tensors of the requested network in a file.

    Attributes:
        format: whose layout it is.
        branch: "online" or "momentum".
        backbone: tensors by timm's names.
        head: tensors of the projector by ``<layer>.<name>``; empty where there is none.
        clusters: whether that head goes on to prototypes, as DINO's does.
        others: what is neither backbone nor projector, and how many tensors each of it has.
    """

    format: str
    branch: str
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    clusters: bool
    others: dict[str, int]


def take_apart(state: dict[str, Tensor], name: str, branch: BranchName, path: Path) -> Parts:
    """Split a file into its parts.

    Args:
        state: all its tensors by name.
        name: its format, or ``auto``.
        branch: which of the networks in it.
        path: of the file, for messages.

    Raises:
        UserError: no format fits, or more than one; it has not that network, or one that
            timm's networks cannot compute.
    """
    name = recognize(state, path) if name == "auto" else name
    place = find_place(state, name, branch, path)
    prefix = next((h for h in place.heads if any(n.startswith(h) for n in state)), None)
    backbone, head, others = {}, {}, Counter[str]()
    for key, tensor in state.items():
        if prefix is not None and key.startswith(prefix):
            head[key.removeprefix(prefix)] = tensor
        elif key.startswith(place.backbone) and not _is_average(key, place.backbone):
            backbone[key.removeprefix(place.backbone)] = tensor
        else:
            others[_group(key, place.backbone)] += 1
    if lacks_first_relu(backbone):
        raise UserError(
            f"{path} holds lightly's own ResNet in an nn.Sequential, which has no ReLU after its "
            "first batch norm: timm has no equivalent"
        )
    # A head's prototypes lie beside its layers.
    beside = prefix.rstrip(".").rpartition(".")[0] + ".last_layer." if prefix else None
    clusters = beside is not None and any(n.startswith(beside) for n in state)
    return Parts(name, place.branch, to_timm(backbone), head, clusters, dict(others))


def _is_average(key: str, backbone: str) -> bool:
    """Whether a file without prefix has this tensor for its second, averaged network."""
    return not backbone and key.startswith(AVERAGES)


def _group(key: str, backbone: str) -> str:
    parts = key.split(".")
    inside = bool(backbone) and parts[0] == backbone.split(".")[0]
    return ".".join(parts[: 2 if inside and len(parts) > 2 else 1])
