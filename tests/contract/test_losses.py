"""What every loss promises, over all registered kinds."""

import copy
import inspect
import re

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import ValidationError
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.losses import Loss, Shapes
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.representation import Representation
from ssdistill.registry import LOSSES

KINDS = list(LOSSES.classes)
WITH_MINIMUM = [kind for kind, cls in LOSSES.classes.items() if cls.minimum_at_teacher]
BATCH, NUM_SAMPLES, IMAGE_SIZE = 8, 64, 32
SIDES = {"act1": 16, "layer1": 8, "layer2": 4, "layer3": 2, "layer4": 2}


def make_shapes(student_dim: int = 12, teacher_dim: int = 16) -> Shapes:
    def maps(dim: int) -> dict[str, tuple[int, int, int]]:
        return {name: (dim // 2, side, side) for name, side in SIDES.items()}

    return Shapes(
        student_dim=student_dim,
        teacher_dim=teacher_dim,
        num_samples=NUM_SAMPLES,
        teacher_projection_dim=10,
        student_maps=maps(student_dim),
        teacher_maps=maps(teacher_dim),
    )


def make_representation(
    dim: int, maps: dict, projection_dim: int | None = None, requires_grad: bool = False
) -> Representation:
    projection_BP = None if projection_dim is None else torch.randn(BATCH, projection_dim)
    representation = Representation(
        torch.randn(BATCH, dim).relu(),
        projection_BP,
        {name: torch.randn(BATCH, *shape).relu() for name, shape in maps.items()},
    )
    for tensor in leaves(representation):
        tensor.requires_grad_(requires_grad)
    return representation


def leaves(representation: Representation) -> list[Tensor]:
    tensors = [representation.embedding_BD, representation.projection_BP]
    return [t for t in tensors if t is not None] + list(representation.maps.values())


def make_inputs(
    loss: Loss, step: int = 0, num_views: int | None = None
) -> tuple[list[Representation], list[Representation], Batch]:
    torch.manual_seed(100 + step)
    views, known = num_views or loss.views, loss.shapes
    student = [
        make_representation(known.student_dim, known.student_maps, requires_grad=True)
        for _ in range(views)
    ]
    teacher = [
        make_representation(known.teacher_dim, known.teacher_maps, known.teacher_projection_dim)
        for _ in range(views)
    ]
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    return student, teacher, Batch(images, torch.randperm(NUM_SAMPLES)[:BATCH], 0, step, 10)


def build(kind: str, shapes: Shapes | None = None, seed: int = 0) -> Loss:
    torch.manual_seed(seed)
    return LOSSES.build(LOSSES.schema(kind)(), shapes or make_shapes()).train()


def read_by(loss: Loss, representation: Representation) -> list[Tensor]:
    """The student's tensors that the loss says it reads; its head makes any projection."""
    reads = (loss.reads,) if isinstance(loss.reads, str) else loss.reads
    names = {"embedding" if name == "projection" else name for name in reads}
    everything = {"embedding": representation.embedding_BD, **representation.maps}
    return [everything[name] for name in names]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_says_what_it_is(kind):
    cls = LOSSES[kind]
    assert cls.family and re.search(r"arXiv:\d{4}\.\d{5}|arXiv:\d{4}\.\d{4}\b", cls.paper)
    documentation = inspect.getdoc(cls)
    settings = set(LOSSES.schema(kind).model_fields) - {"kind", "weight"}
    undocumented = [name for name in settings if not re.search(rf"\b{name}\b.*:", documentation)]
    assert not undocumented


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra_views", [0, 1])
def test_a_loss_is_a_finite_scalar(kind, extra_views):
    loss_of = build(kind)
    value = loss_of(*make_inputs(loss_of, num_views=loss_of.views + extra_views))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_what_is_read_and_every_trained_part(kind):
    loss_of = build(kind)
    student, teacher, batch = make_inputs(loss_of)
    loss_of(student, teacher, batch).backward()
    for view in student:
        for tensor in read_by(loss_of, view):
            assert tensor.grad is not None and tensor.grad.abs().max() > 0
    for name, parameter in loss_of.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias in front of a batch norm has gradient zero; a weight never has.
        assert parameter.ndim < 2 or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_continues_exactly(kind):
    whole, resumed = build(kind), build(kind, seed=1)
    whole(*make_inputs(whole, step=0))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    inputs = make_inputs(whole, step=1)
    random_state = torch.get_rng_state()
    expected = whole(*inputs)
    torch.set_rng_state(random_state)
    assert torch.equal(resumed(*inputs), expected)
    states = whole.state_dict(), resumed.state_dict()
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_stays_finite_and_near(kind):
    loss_of = build(kind)
    student, teacher, batch = make_inputs(loss_of)
    exact = copy.deepcopy(loss_of)(student, teacher, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for side in (student, teacher):
            side[:] = [
                Representation(
                    r.embedding_BD.bfloat16(),
                    None if r.projection_BP is None else r.projection_BP.bfloat16(),
                    {name: m.bfloat16() for name, m in r.maps.items()},
                )
                for r in side
            ]
        value = loss_of(student, teacher, batch)
    value.backward()
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=0.1, abs=0.05)
    for name, tensor in [*loss_of.named_parameters(), *loss_of.named_buffers()]:
        assert torch.isfinite(tensor).all(), name
        assert tensor.grad is None or torch.isfinite(tensor.grad).all(), name


@pytest.mark.parametrize("kind", WITH_MINIMUM)
def test_a_student_like_the_teacher_is_at_the_minimum(kind):
    loss_of = build(kind, make_shapes(16, 16))
    _, teacher, batch = make_inputs(loss_of)

    def value(noise: float) -> float:
        torch.manual_seed(7)
        student = [
            Representation(
                r.embedding_BD + noise * torch.randn_like(r.embedding_BD),
                r.projection_BP,
                {name: m + noise * torch.randn_like(m) for name, m in r.maps.items()},
            )
            for r in teacher
        ]
        return float(copy.deepcopy(loss_of)(student, teacher, batch))

    at_teacher = value(0.0)
    assert all(value(noise) > at_teacher for noise in (0.05, 0.2, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_nobody_knows_is_refused(kind):
    with pytest.raises(ValidationError, match="no_such_setting"):
        LOSSES.schema(kind)(no_such_setting=1)


def small_encoder(channels: tuple[int, ...]):
    args = {"layers": (1, 1, 1, 0), "channels": channels, "stem_type": "deep", "stem_width": 8}
    settings = EncoderSettings(name="resnet10t", args=args, stem_stride=2)
    return build_encoder(settings, IMAGE_SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_configuration_trains(kind):
    snippet = re.search(r"```yaml\n(.*?)```", inspect.getdoc(LOSSES[kind]), re.DOTALL)
    assert snippet, "no YAML snippet"
    config = OmegaConf.to_container(OmegaConf.create(snippet[1]))["losses"]
    settings = {name: LOSSES.schema(loss["kind"])(**loss) for name, loss in config.items()}
    assert kind in {chosen.kind for chosen in settings.values()}

    torch.manual_seed(0)
    student, teacher = small_encoder((8, 16, 16, 16)), small_encoder((8, 24, 24, 24))
    known = shapes(student, teacher, NUM_SAMPLES)
    losses = {name: LOSSES.build(chosen, known) for name, chosen in settings.items()}
    weights = {name: chosen.weight for name, chosen in settings.items()}
    distiller = Distiller(student, teacher, losses, weights).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    student_before, teacher_before = (copy.deepcopy(e.state_dict()) for e in (student, teacher))
    for step in range(2):
        views = [torch.rand(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE) for _ in range(distiller.num_views)]
        images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
        batch = Batch(images, torch.randperm(NUM_SAMPLES)[:BATCH], 0, step, 2)
        values = distiller(views, batch)
        sum(weights[name] * value for name, value in values.items()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.isfinite(p).all() for p in distiller.parameters())
    assert any(not torch.equal(v, student_before[n]) for n, v in student.named_parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, teacher_before[name]), name
    assert all(p.grad is None for p in teacher.parameters())
