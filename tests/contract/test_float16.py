"""Losses and methods whose networks compute in float16: near those in float32, and finite."""

import copy

import pytest
import torch
from synthetic import NUM_SAMPLES, PROJECTION, make_shapes, make_teacher_fit
from test_losses import BATCH, KINDS
from test_methods import SMALL, STEPS, make_batch, make_views, vision_transformer
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distill.distiller import Distiller
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings.registry import LOSSES, METHODS

ORDINARY, LARGE = 1.0, 100.0
"""Magnitudes of features: squares of the large ones, summed over a map, exceed 65,504."""
SMALL_SCALE = 2.0**-10
"""A loss scale at which gradients at large features are representable."""


class OneLayer(nn.Module):
    """Embedding, projection and all feature maps from one linear layer, which autocast casts."""

    def __init__(self, dim: int, maps: dict, magnitude: float, projection_dim: int | None = None):
        super().__init__()
        self.shapes = {"embedding": (dim,), "projection": (projection_dim or 1,), **maps}
        self.layer = nn.Linear(12, sum(torch.Size(s).numel() for s in self.shapes.values()))
        self.magnitude, self.project = magnitude, projection_dim is not None

    def set_taps(self, taps: tuple[str, ...]) -> None:
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


def make_distiller(kind: str, magnitude: float) -> Distiller:
    torch.manual_seed(0)
    known = make_shapes()
    loss = LOSSES.build(LOSSES.schema(kind)(), known)
    fit = make_teacher_fit(known, NUM_SAMPLES)
    loss.fit_teacher(Representation(magnitude * fit.embedding_BD, magnitude * fit.projection_BP))
    student = OneLayer(known.student_dim, known.student_maps, magnitude)
    teacher = OneLayer(known.teacher_dim, known.teacher_maps, magnitude, PROJECTION)
    return Distiller(student, teacher, {"it": loss}).train()


def distill(distiller: Distiller, half: bool) -> Tensor:
    """The loss of one step; its gradient, at a small loss scale, is left in the weights."""
    torch.manual_seed(1)
    views = distiller.num_views + len(distiller.extra_views)
    views = [torch.randn(BATCH, 3, 2, 2) for _ in range(views)]
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    index_B = torch.randperm(NUM_SAMPLES)[:BATCH]
    batch = Batch(images, index_B, 0, 1, 10, cutmix_fraction=0.7)
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        loss = torch.stack([*distiller(views, batch).values()]).sum()
    (SMALL_SCALE * loss).backward()
    return loss.detach()


@pytest.mark.parametrize("magnitude", [ORDINARY, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_float16_networks_is_finite_and_near(kind, magnitude):
    full = make_distiller(kind, magnitude)
    half = copy.deepcopy(full)
    expected, found = distill(full, False), distill(half, True)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=0.01, abs=1e-3)
    for name, tensor in [*half.named_parameters(), *half.named_buffers()]:
        assert torch.isfinite(tensor).all(), name
        assert tensor.grad is None or torch.isfinite(tensor.grad).all(), name


class Careless(Loss):
    """Sums squares in whatever format it is given, behind a head."""

    student_taps = teacher_taps = ("layer1",)

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.head = nn.Conv2d(shapes.student_maps["layer1"][0], shapes.teacher_maps["layer1"][0], 1)

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s_BCHW, t_BCHW = self.head(student[0].maps["layer1"]), teacher[0].maps["layer1"]
        return (s_BCHW - t_BCHW.to(s_BCHW.dtype)).square().flatten(1).sum(1)


@pytest.mark.parametrize("dropping", [None, 0.5])
def test_a_loss_need_not_care_for_formats(dropping):
    torch.manual_seed(0)
    known = make_shapes()
    student = OneLayer(known.student_dim, known.student_maps, LARGE)
    teachers = {
        name: OneLayer(known.teacher_dim, known.teacher_maps, LARGE, PROJECTION)
        for name in ("a", "b")[: 1 + (dropping is not None)]
    }
    names = ["it/a", "it/b"] if dropping else ["it"]
    losses = {name: Careless(known) for name in names}
    distiller = Distiller(student, teachers, losses, teacher_dropping=dropping).train()
    half = copy.deepcopy(distiller)
    expected, found = distill(distiller, False), distill(half, True)
    assert float(found) > 65_504 and found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=0.01)


class Louder(nn.Module):
    """A hook that multiplies embeddings."""

    def forward(self, module: nn.Module, args: object, output: Representation) -> Representation:
        return Representation(LARGE * output.embedding_BD, output.projection_BP, output.maps)


@pytest.mark.parametrize("magnitude", [ORDINARY, LARGE])
@pytest.mark.parametrize("kind", sorted(METHODS.classes))
def test_a_method_of_float16_networks_is_finite_and_near(kind, magnitude):
    settings = METHODS.schema(kind).model_validate(
        {"kind": kind, "steps": STEPS, **SMALL.get(kind, {})}
    )
    full = METHODS.build(settings, vision_transformer()).train()
    half = copy.deepcopy(full)
    for method in (full, half):
        for encoder in (m for m in method.modules() if isinstance(m, type(full.encoder))):
            if magnitude == LARGE:
                encoder.register_forward_hook(Louder())
    expected = full(make_views(full), make_batch())
    with torch.autocast("cpu", dtype=torch.float16):
        found = half(make_views(half), make_batch())
    (SMALL_SCALE * sum(found.values())).backward()
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(expected[name]), rel=0.02, abs=5e-3), name
    for name, tensor in [*half.named_parameters(), *half.named_buffers()]:
        assert torch.isfinite(tensor).all(), name
        assert tensor.grad is None or torch.isfinite(tensor.grad).all(), name
