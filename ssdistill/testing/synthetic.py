"""Random outputs of two imaginary networks, for every loss."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ssdistill.losses import Loss, Shapes
from ssdistill.models.final_patches import FINAL_PATCHES
from ssdistill.models.representation import Outputs, Representation

SIDES = {"act1": 16, "layer1": 8, "layer2": 4, "layer3": 2, "layer4": 2}
NUM_SAMPLES = 64
PROJECTION = 10


def make_shapes(student_dim: int = 12, teacher_dim: int = 16) -> Shapes:
    """Two networks with all that a loss might read."""
    return Shapes(
        student_dim=student_dim,
        teacher_dim=teacher_dim,
        num_samples=NUM_SAMPLES,
        teacher_projection_dim=PROJECTION,
        student_maps=_maps(student_dim, heads=2, tokens=10),
        student_mask_dim=student_dim,
        # As many tokens as the student has when the two are to be alike.
        teacher_maps=_maps(teacher_dim, heads=4 if student_dim != teacher_dim else 2, tokens=10),
        teacher_norms={
            name: (torch.zeros(teacher_dim // 2), torch.ones(teacher_dim // 2)) for name in SIDES
        },
    )


def _maps(dim: int, heads: int, tokens: int) -> dict[str, tuple[int, int, int]]:
    maps = {name: (dim // 2, side, side) for name, side in SIDES.items()}
    maps |= {f"before_relu:{name}": shape for name, shape in maps.items()}
    return maps | {"attention:blocks.3": (heads, 1, tokens), FINAL_PATCHES: (dim, 2, 2)}


def make_representation(
    dim: int, maps: dict, projection_dim: int | None, count: int, requires_grad: bool
) -> Representation:
    found = {name: torch.randn(count, *shape) for name, shape in maps.items()}
    representation = Representation(
        torch.randn(count, dim).relu(),
        None if projection_dim is None else torch.randn(count, projection_dim),
        {name: m if ":" in name else m.relu() for name, m in found.items()},
    )
    return mapped([representation], lambda x: x.requires_grad_(requires_grad))[0]


def make_outputs(loss: Loss, count: int, views: int) -> tuple[Outputs, Outputs]:
    """Student (collecting gradients) and teacher, ``count`` images in ``views`` views."""
    known = loss.shapes

    def student(requires_grad: bool = True) -> Representation:
        maps = known.student_maps
        return make_representation(known.student_dim, maps, None, count, requires_grad)

    def teacher() -> Representation:
        dims = known.teacher_dim, known.teacher_maps, known.teacher_projection_dim
        return make_representation(*dims, count, requires_grad=False)

    return (
        Outputs(
            [student() for _ in range(views)],
            {name: student() for name in loss.extra_student},
            [student(False) for _ in range(views)] if loss.momentum is not None else (),
            [student() for _ in range(views)] if loss.masks_student else (),
        ),
        Outputs(
            [teacher() for _ in range(views)], {name: teacher() for name in loss.extra_teacher}
        ),
    )


def make_teacher_fit(known: Shapes, count: int) -> Representation:
    """The teacher's embeddings of the training images, and patches of some."""
    fit = make_representation(
        known.teacher_dim, {}, known.teacher_projection_dim, count, requires_grad=False
    )
    if FINAL_PATCHES in known.teacher_maps:
        some_BDHW = torch.randn(count // 2, *known.teacher_maps[FINAL_PATCHES])
        return replace(fit, maps={FINAL_PATCHES: some_BDHW})
    return fit


def mapped(outputs: list[Representation], function: Callable[[Tensor], Tensor]) -> Outputs:
    """The same outputs with a function applied to every tensor."""

    def one(r: Representation) -> Representation:
        return Representation(
            function(r.embedding_BD),
            None if r.projection_BP is None else function(r.projection_BP),
            {name: function(m) for name, m in r.maps.items()},
        )

    extra = getattr(outputs, "extra", {})
    return Outputs(
        [one(r) for r in outputs],
        {name: one(r) for name, r in extra.items()},
        [one(r) for r in getattr(outputs, "momentum", ())],
        [one(r) for r in getattr(outputs, "masked", ())],
    )
