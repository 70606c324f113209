"""Checks of losses and methods whose networks compute in float16: near float32, and finite."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.distill.distiller import Distiller
from ssdistill.models.representation import Representation
from ssdistill.testing.candidate import Candidate, Check, demand, demand_close, demand_finite
from ssdistill.testing.losses import BATCH, make_batch, state_of
from ssdistill.testing.synthetic import NUM_SAMPLES, PROJECTION, make_shapes, make_teacher_fit

ORDINARY, LARGE = 1.0, 100.0
"""Magnitudes of features: squares of the large ones, summed over a map, exceed 65,504."""
SMALL_SCALE = 2.0**-10
"""A loss scale at which gradients at large features are representable."""


class OneLayer(nn.Module):
    """Embedding, projection and all feature maps from one linear layer, which autocast casts."""

    taps: tuple[str, ...] = ()
    division = None

    def __init__(
        self,
        dim: int,
        maps: Mapping[str, tuple[int, ...]],
        magnitude: float,
        projection_dim: int | None = None,
    ):
        super().__init__()
        self.shapes = {"embedding": (dim,), "projection": (projection_dim or 1,), **maps}
        self.layer = nn.Linear(12, sum(torch.Size(s).numel() for s in self.shapes.values()))
        self.magnitude, self.project = magnitude, projection_dim is not None
        # Where masks would be applied: what they hide makes no difference here.
        self.net = nn.ModuleDict({"patch_embed": nn.Identity()})

    def set_taps(self, taps: tuple[str, ...]) -> None:
        """Note the names of maps; all of them are returned."""
        self.taps = taps

    def forward(self, x_BCHW: Tensor) -> Representation:
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = (self.magnitude * self.layer(x_BCHW.flatten(1))).split(sizes, dim=1)
        found = {
            name: part.reshape(-1, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        embedding, projection = found.pop("embedding").relu(), found.pop("projection")
        maps = {name: m if ":" in name else m.relu() for name, m in found.items()}
        return Representation(embedding, projection if self.project else None, maps)


def make_layers(magnitude: float, *teachers: str) -> tuple[Any, dict[str, Any]]:
    """A student and teachers by name, with the shapes of :func:`make_shapes`."""
    known = make_shapes()
    student = OneLayer(known.student_dim, known.student_maps, magnitude)
    return student, {
        name: OneLayer(known.teacher_dim, known.teacher_maps, magnitude, PROJECTION)
        for name in teachers
    }


def make_one_layer_distiller(candidate: Candidate, magnitude: float) -> Distiller:
    """A distillation by the loss, between networks of one layer."""
    torch.manual_seed(0)
    known = make_shapes()
    loss = candidate.build(known)
    fit = make_teacher_fit(known, NUM_SAMPLES)
    projection_BP = None if fit.projection_BP is None else magnitude * fit.projection_BP
    maps = {name: magnitude * map_BDHW for name, map_BDHW in fit.maps.items()}
    loss.fit_teacher(Representation(magnitude * fit.embedding_BD, projection_BP, maps))
    student, teachers = make_layers(magnitude, "teacher")
    return Distiller(student, teachers["teacher"], {"it": loss}).train()


def distill(distiller: Distiller, half: bool) -> Tensor:
    """The loss of one step; its gradient, at a small loss scale, is left in the weights."""
    torch.manual_seed(1)
    count = distiller.num_views + len(distiller.extra_views)
    views = [torch.randn(BATCH, 3, 2, 2) for _ in range(count)]
    batch = make_batch(BATCH, 1)
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        loss = torch.stack([*distiller(views, batch).values()]).sum()
    (SMALL_SCALE * loss).backward()
    return loss.detach()


def loss_is_finite_and_near(candidate: Candidate, magnitude: float) -> None:
    """A loss of networks in float16 is float32, finite, and that of networks in float32."""
    full = make_one_layer_distiller(candidate, magnitude)
    half = copy.deepcopy(full)
    expected, found = distill(full, False), distill(half, True)
    demand(found.dtype == torch.float32, f"the loss is {found.dtype}, not float32")
    demand_close(float(found), float(expected), 0.01, 1e-3, "the loss of float16 networks")
    demand_finite(state_of(half))


LOSSES_IN_FLOAT16 = {
    "float16": Check(partial(loss_is_finite_and_near, magnitude=ORDINARY)),
    "float16_of_large_features": Check(partial(loss_is_finite_and_near, magnitude=LARGE)),
}
