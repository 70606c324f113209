"""Checkpoint layouts of other projects: key prefixes of backbone and projector."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ssdistill.errors import UserError

BranchName = Literal["auto", "online", "student", "momentum", "teacher"]
ALIASES = {"student": "online", "teacher": "momentum"}


@dataclass(frozen=True)
class Place:
    """Where one network is.

    Attributes:
        branch: "online" (trained by gradients) or "momentum" (the average over them).
        backbone: what its names begin with.
        heads: what the names of its projector begin with, one of these.
        requires: another beginning that makes this one mean what it does here.
    """

    branch: str
    backbone: str
    heads: tuple[str, ...] = ()
    requires: str = ""


@dataclass(frozen=True)
class Format:
    """One project's layout.

    Attributes:
        places: the first that a file has is taken, so the one that the authors evaluate leads.
        marks: each of them is a set of beginnings of names; it is this format if some name has
            every one of a set.
        never: beginnings of names that it does not have.
    """

    places: tuple[Place, ...]
    marks: tuple[tuple[str, ...], ...]
    never: tuple[str, ...] = ()
    also: Callable[[dict[str, Tensor]], bool] = field(default=lambda state: False)


def _vissl(prefix: str) -> tuple[Place, ...]:
    trunk, heads = f"{prefix}trunk.", (f"{prefix}heads.",)
    return tuple(
        Place("online", trunk + inner, heads)
        for inner in ("_feature_blocks.", "base_model._feature_blocks.", "")
    )


def _byol(branch: str, own: str) -> tuple[Place, ...]:
    # Two projects spell it so.
    heads = ("projetion.net.", "projection.net.", "projetion.", "projection.")
    return (
        Place(branch, f"{own}_encoder.net.", (f"{own}_encoder.projector.",)),
        *(
            Place(branch, f"{network}.encoder.", tuple(f"{network}.{head}" for head in heads))
            for network in (f"{own}_network", f"{own}_network_state_dict")
        ),
    )


def _only_backbone(state: dict[str, Tensor]) -> bool:
    return all(n.startswith("backbone.") and not n.startswith("backbone.fc.0.") for n in state)


LIGHTLY_OWN = (
    "projection_head.", "teacher_backbone.", "student_backbone.", "query_backbone.",
    "key_backbone.", "backbone_momentum.",
)  # fmt: skip

AVERAGES = ("state_dict_ema.", "model_ema.")
"""timm's averaged networks, beside an online one whose names begin with nothing."""

FORMATS: dict[str, Format] = {
    "solo-learn": Format(
        places=(
            Place("online", "backbone.", ("projector.", "head.mlp.")),
            Place("online", "encoder.", ("projector.", "head.mlp.")),
            Place("momentum", "momentum_backbone.", ("momentum_projector.", "momentum_head.mlp.")),
            Place("momentum", "momentum_encoder.", ("momentum_projector.", "momentum_head.mlp.")),
        ),
        marks=(
            ("backbone.", "classifier."),
            ("backbone.", "projector."),
            ("backbone.", "momentum_backbone."),
            ("backbone.", "head.mlp."),
            ("backbone.", "queue"),
            ("encoder.", "classifier."),
        ),
        never=(*LIGHTLY_OWN, "backbone.0.", "backbone.fc.0.", "dino_head."),
        also=_only_backbone,
    ),
    "lightly": Format(
        places=(
            # Its MoCo and DINO benchmarks evaluate the average, which they call the backbone.
            Place("momentum", "backbone.", ("projection_head.layers.",),
                  requires="query_backbone."),
            Place("momentum", "backbone.", ("projection_head.layers.",),
                  requires="student_backbone."),
            Place("momentum", "teacher_backbone.", ("teacher_head.layers.",),
                  requires="student_backbone."),
            Place("online", "query_backbone.", ("query_projection_head.layers.",)),
            Place("online", "student_backbone.",
                  ("student_head.layers.", "student_projection_head.layers.")),
            Place("online", "backbone.", ("projection_head.layers.",)),
            Place("momentum", "teacher_backbone.",
                  ("teacher_head.layers.", "teacher_projection_head.layers.")),
            Place("momentum", "backbone_momentum.", ("projection_head_momentum.layers.",)),
            Place("momentum", "key_backbone.", ("key_projection_head.layers.",)),
        ),
        marks=(*((own,) for own in LIGHTLY_OWN), ("backbone.0.weight",)),
        also=_only_backbone,
    ),
    "moco": Format(
        places=(
            Place("online", "encoder_q.", ("encoder_q.fc.",)),
            Place("online", "base_encoder.", ("base_encoder.fc.", "base_encoder.head.")),
            Place("momentum", "encoder_k.", ("encoder_k.fc.",)),
            Place("momentum", "momentum_encoder.",
                  ("momentum_encoder.fc.", "momentum_encoder.head.")),
        ),
        marks=(("encoder_q.",), ("base_encoder.",)),
    ),
    "simclr": Format(
        places=(
            Place("online", "backbone.", ("backbone.fc.",), requires="backbone.fc.0."),
            Place("online", "backbone."),
            Place("online", "encoder.", ("projector.", "projection_head.", "head.")),
            Place("online", "resnet.", ("head.layers.",)),
            Place("online", ""),
        ),
        marks=(("backbone.fc.0.",), ("encoder.", "projector."), ("encoder.", "head."),
               ("resnet.", "head.layers.")),
        never=("classifier.", "momentum_encoder.", "encoder.layers."),
    ),
    "byol": Format(
        places=(
            *_byol("online", "online"),
            *_byol("momentum", "target"),
            Place("online", "net."),
        ),
        marks=(("online_encoder.",), ("online_network.",), ("online_network_state_dict.",)),
    ),
    "vissl": Format(
        places=(
            *_vissl("classy_state_dict.base_model.model."),
            *_vissl(""),
            Place("online", "_feature_blocks."),
        ),
        marks=(("classy_state_dict.",), ("trunk._feature_blocks.",), ("_feature_blocks.",)),
    ),
    "dino": Format(
        places=(
            *(
                Place(branch, f"{own}backbone.", (f"{own}head.mlp.", f"{own}dino_head.mlp."))
                for branch, own in (("momentum", "teacher."), ("online", "student."))
            ),
            Place("momentum", "backbone.", ("dino_head.mlp.", "head.mlp.")),
            Place("momentum", ""),
        ),
        marks=(("teacher.backbone.",), ("student.backbone.",), ("backbone.", "dino_head.")),
    ),
    "torchvision": Format(
        places=(Place("online", ""),),
        marks=(("conv1.weight", "layer1.0."), ("conv_proj.", "encoder.layers.encoder_layer_")),
        never=AVERAGES,
    ),
    "timm": Format(
        places=(
            *(Place("momentum", average) for average in AVERAGES),
            Place("online", ""),
        ),
        marks=(),
    ),
}  # fmt: skip


FALLBACK = "timm"
"""It has no marks: its names are those of the network."""


def recognize(state: dict[str, Tensor], path: Path) -> str:
    """Recognize a file's format by its tensor names; timm if no other matches.

    Raises:
        UserError: more than one has them.
    """
    fitting = [name for name, layout in FORMATS.items() if _has_marks(layout, state)]
    if len(fitting) > 1:
        raise UserError(
            f"{path} matches the formats {' and '.join(fitting)} (its tensors: "
            f"{first_names(state)}): set teacher.format"
        )
    return fitting[0] if fitting else FALLBACK


def _has_marks(layout: Format, state: dict[str, Tensor]) -> bool:
    def has(beginning: str) -> bool:
        return any(name.startswith(beginning) for name in state)

    if any(map(has, layout.never)):
        return False
    return layout.also(state) or any(all(map(has, mark)) for mark in layout.marks)


def find_place(state: dict[str, Tensor], name: str, branch: BranchName, path: Path) -> Place:
    """Locate the requested network in a file of format ``name``.

    Raises:
        UserError: it has none there.
    """
    wanted_branch = ALIASES.get(branch, branch)
    present = [p for p in FORMATS[name].places if _matches_layout(p, state)]
    for place in present:
        if wanted_branch in ("auto", place.branch):
            return place
    if present:
        raise UserError(
            f"{path} has no {branch} network in {name} format, only this one: {present[0].branch}; "
            "set teacher.branch"
        )
    raise UserError(
        f"{path} is not a {name} checkpoint (its tensors: {first_names(state)}); set teacher.format"
    )


def _matches_layout(place: Place, state: dict[str, Tensor]) -> bool:
    return all(any(n.startswith(b) for n in state) for b in (place.backbone, place.requires))


def first_names(state: dict[str, Tensor]) -> str:
    """The first few names, for a message."""
    return ", ".join(list(state)[:4]) + (", …" if len(state) > 4 else "")
