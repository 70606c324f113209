"""What every registered loss must do; a new one is tested without being named."""

import copy
import inspect
import re

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import ValidationError
from synthetic import make_outputs, make_shapes, make_teacher_fit, mapped
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.extra import EXTRA
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.errors import UserError
from ssdistill.losses import Loss, LossSettings, Shapes
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings.registry import LOSSES

KINDS = list(LOSSES.classes)
FAMILIES = {
    "similarity distribution",
    "contrastive",
    "feature matching",
    "relational",
    "attention and intermediate",
    "prototype and logit",
}
WITH_MINIMUM = [kind for kind, cls in LOSSES.classes.items() if cls.minimum_at_teacher]
BATCH, NUM_SAMPLES, IMAGE_SIZE = 8, 64, 32
SHARED = set(LossSettings.model_fields) | {"kind"}


def build(kind: str, known: Shapes | None = None, seed: int = 0) -> Loss:
    torch.manual_seed(seed)
    known = known or make_shapes()
    loss = LOSSES.build(LOSSES.schema(kind)(), known).train()
    loss.fit_teacher(make_teacher_fit(known, NUM_SAMPLES))
    return loss


def make_inputs(
    loss: Loss, step: int = 0, num_views: int | None = None
) -> tuple[Outputs, Outputs, Batch]:
    torch.manual_seed(100 + step)
    views = num_views or loss.views
    student, teacher = make_outputs(loss, BATCH, views)
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    batch = Batch(images, torch.randperm(NUM_SAMPLES)[:BATCH], 0, step, 10, cutmix_fraction=0.7)
    return student, teacher, batch


def read_by(loss: Loss, view: Representation) -> list[Tensor]:
    """The student's tensors that the loss says it reads; its head makes any projection."""
    tensors = [view.maps[tap] for tap in loss.student_taps]
    if {"embedding", "projection"} & set(loss.reads.split(", ")):
        tensors.append(view.embedding_BD)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_says_what_it_is(kind):
    cls = LOSSES[kind]
    assert cls.family and re.search(r"arXiv:\d{4}\.\d{5}|arXiv:\d{4}\.\d{4}\b", cls.paper)
    documentation = inspect.getdoc(cls)
    assert cls.family in FAMILIES
    assert set(cls.reads.split(", ")) <= {"embedding", "projection", "maps", "attention"}
    assert set(cls.extra_student) | set(cls.extra_teacher) <= set(EXTRA)
    settings = set(LOSSES.schema(kind).model_fields) - SHARED
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
    trained = {name: p for name, p in loss_of.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
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
        student, teacher = (mapped(side, Tensor.bfloat16) for side in (student, teacher))
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
        student = mapped(teacher, lambda x: x + noise * torch.randn_like(x))
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


def small_transformer(width: int, patch_size: int):
    args = {"img_size": IMAGE_SIZE, "patch_size": patch_size, "embed_dim": width}
    args |= {"depth": 4, "num_heads": 4}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), IMAGE_SIZE)


ARCHITECTURES = {
    "cnn-cnn": lambda: (small_encoder((8, 16, 16, 16)), small_encoder((8, 24, 24, 24))),
    "vit-cnn": lambda: (small_transformer(16, 16), small_encoder((8, 24, 24, 24))),
    "cnn-vit": lambda: (small_encoder((8, 16, 16, 16)), small_transformer(32, 8)),
    "vit-vit": lambda: (small_transformer(16, 16), small_transformer(32, 8)),
}
"""Student and teacher."""
REFUSED = {
    "attndistill": {"cnn-cnn", "vit-cnn", "cnn-vit"},
    "ab": {"vit-cnn", "cnn-vit", "vit-vit"},
    "ofd": {"vit-cnn", "cnn-vit", "vit-vit"},
}
"""Architectures that do not have what a loss reads: attention, a ReLU at the end of a stage."""


def documented_losses(kind: str) -> dict:
    snippet = re.search(r"```yaml\n(.*?)```", inspect.getdoc(LOSSES[kind]), re.DOTALL)
    assert snippet, "no YAML snippet"
    config = OmegaConf.to_container(OmegaConf.create(snippet[1]))["losses"]
    settings = {name: LOSSES.schema(loss["kind"])(**loss) for name, loss in config.items()}
    assert kind in {chosen.kind for chosen in settings.values()}
    return settings


def make_distiller(kind: str, architectures: str) -> Distiller:
    settings = documented_losses(kind)
    torch.manual_seed(0)
    student, teacher = ARCHITECTURES[architectures]()
    teacher.projector = nn.Sequential(nn.Linear(teacher.embed_dim, 10))
    known = shapes(student, teacher, NUM_SAMPLES)
    losses = {name: LOSSES.build(chosen, known) for name, chosen in settings.items()}
    for loss in losses.values():
        loss.fit_teacher(make_teacher_fit(known, NUM_SAMPLES))
    return Distiller(student, teacher, losses, settings).train()


def train_step(distiller: Distiller, optimizer: torch.optim.Optimizer, step: int) -> None:
    count = distiller.num_views + len(distiller.extra_views)
    views = [torch.rand(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE) for _ in range(count)]
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    batch = Batch(images, torch.randperm(NUM_SAMPLES)[:BATCH], 0, step, 2, cutmix_fraction=0.7)
    weights = distiller.weights_at(step, 2)
    losses = distiller(views, batch)
    sum(weights[name] * value for name, value in losses.items()).backward()
    optimizer.step()
    optimizer.zero_grad()
    distiller.after_step(step, 2)


@pytest.mark.parametrize("architectures", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_configuration_trains(kind, architectures):
    if architectures in REFUSED.get(kind, ()):
        with pytest.raises(UserError, match=f"^{kind}: .*(resnet10t|vit_tiny)"):
            make_distiller(kind, architectures)
        return
    distiller = make_distiller(kind, architectures)
    student, teacher = distiller.student, distiller.teacher
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    student_before, teacher_before = (copy.deepcopy(e.state_dict()) for e in (student, teacher))
    for step in range(2):
        train_step(distiller, optimizer, step)
    assert all(torch.isfinite(p).all() for p in distiller.parameters())
    assert any(not torch.equal(v, student_before[n]) for n, v in student.named_parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, teacher_before[name]), name
    assert all(p.grad is None for p in teacher.parameters())
