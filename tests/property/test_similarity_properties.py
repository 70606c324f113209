"""Properties of the losses on distributions of similarities for arbitrary inputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base import similarity
from ssdistill.losses.base.similarity import queue_divergence
from ssdistill.losses.compress import CompRess
from ssdistill.losses.dogo import DoGo
from ssdistill.losses.isd import ISD
from ssdistill.losses.lightly import Lightly
from ssdistill.losses.ressl import ReSSL
from ssdistill.losses.seed import SEED
from ssdistill.losses.sskd import SSKD
from ssdistill.models.representation import Outputs
from ssdistill.testing.synthetic import make_outputs, make_shapes, mapped

COUNT, WIDTH, QUEUE = 8, 16, 24
KINDS = {
    "seed": SEED,
    "seed-small": lambda known: SEED(known, small_views=1),
    "compress-1q": lambda known: CompRess(known, variant="1q"),
    "compress-2q": lambda known: CompRess(known, variant="2q"),
    "compress-2q_momentum": CompRess,
    "isd": ISD,
    "isd-momentum": lambda known: ISD(known, target="momentum", projection_dim=6),
    "ressl": ReSSL,
    "ressl-momentum": lambda known: ReSSL(known, target="momentum", dim=6),
    "lightly": Lightly,
    "lightly-local": lambda known: Lightly(known, local_weight=1.0),
    # Among dropped rows of equal rank, order decides.
    "sskd": lambda known: SSKD(known, ratio=1.0),
    "dogo": DoGo,
    "dogo-projection": lambda known: DoGo(known, projection_dim=6),
}
HEADLESS = ("compress-2q", "compress-2q_momentum", "dogo")
OF_TEACHER = [name for name in KINDS if not name.endswith("-momentum")]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def batch_of(step: int = 0) -> Batch:
    images = torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT), 0, step, 10)


def build(name: str, known: Shapes | None = None) -> tuple[Loss, Outputs, Outputs]:
    """A loss and two views of inputs, always the same."""
    torch.manual_seed(0)
    loss = KINDS[name](known or make_shapes()).train()
    return loss, *make_outputs(loss, COUNT, 2)


def value_of(loss: Loss, student: Outputs, teacher: Outputs) -> float:
    """Of a copy, so that the loss remembers nothing."""
    return float(copy.deepcopy(loss)(student, teacher, batch_of()).detach())


def plain(
    s_BD: Tensor, t_BE: Tensor, anchors: tuple[Tensor, Tensor], own: bool, kl: bool, *temperatures
) -> Tensor:
    """The divergence as its equation has it, in the precision of the inputs."""
    s_BD, t_BE = F.normalize(s_BD, dim=1), F.normalize(t_BE, dim=1)
    logits = [s_BD @ anchors[0].T, t_BE @ anchors[1].T]
    if own:
        cosines_B1 = (s_BD * t_BE).sum(1, keepdim=True), torch.ones(len(s_BD), 1)
        logits = [torch.cat([c_B1, x_BK], 1) for c_B1, x_BK in zip(cosines_B1, logits, strict=True)]
    log_q, log_p = (x / t for x, t in zip(logits, temperatures, strict=True))
    log_q, log_p = log_q.log_softmax(1), log_p.log_softmax(1)
    return (log_p.exp() * ((log_p if kl else 0) - log_q)).sum(1).mean()


@pytest.mark.parametrize("chunk", [1, 3 * QUEUE, 1 << 22], ids=["row", "rows", "all"])
@pytest.mark.parametrize(("own", "kl"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("temperatures", [(0.2, 0.01), (0.04, 0.04), (0.1, 1e-4), (1.0, 2.0)])
def test_the_divergence_from_a_queue_is_its_equation(temperatures, own, kl, chunk, monkeypatch):
    monkeypatch.setattr(similarity, "_CPU_CHUNK", chunk)
    double = [rows(seed, COUNT, WIDTH, dtype=torch.float64) for seed in (1, 2)]
    anchors = [F.normalize(rows(seed, QUEUE, WIDTH, dtype=torch.float64), dim=1) for seed in (3, 4)]
    anchors = anchors if not own else anchors[:1] * 2
    single = [x.float() for x in (*double, *anchors)]
    double[0].requires_grad_(), single[0].requires_grad_()

    expected = plain(*double, anchors, own, kl, *temperatures)
    (0.7 * expected).backward()
    found = queue_divergence(*single, *temperatures, own=own, kl=kl)
    (0.7 * found).backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=2e-5)
    difference = (single[0].grad - double[0].grad).abs().max()
    assert difference <= 2e-5 * double[0].grad.abs().max()


def test_cross_entropy_and_divergence_have_the_same_gradient():
    gradients, values = [], []
    for kl in (True, False):
        s_BD = rows(1, COUNT, WIDTH).requires_grad_()
        value = queue_divergence(
            s_BD, rows(2, COUNT, WIDTH), *(rows(3, QUEUE, WIDTH),) * 2, 0.2, 0.1, kl=kl
        )
        value.backward()
        values.append(float(value.detach()))
        gradients.append(s_BD.grad)
    assert torch.equal(*gradients)
    assert values[0] < values[1]


def test_a_queue_may_change_before_the_backward_pass():
    gradients = []
    for overwrite in (False, True):
        queue_KD, s_BD = rows(3, QUEUE, WIDTH), rows(1, COUNT, WIDTH).requires_grad_()
        value = queue_divergence(s_BD, rows(2, COUNT, WIDTH), queue_KD, queue_KD, 0.2, 0.1)
        if overwrite:
            queue_KD.zero_()
        value.backward()
        gradients.append(s_BD.grad)
    assert torch.equal(*gradients)


def test_vectors_of_zeros_leave_everything_finite():
    s_BD, t_BD = torch.zeros(2, 4, requires_grad=True), torch.zeros(2, 4)
    value = queue_divergence(s_BD, t_BD, torch.zeros(3, 4), rows(0, 3, 4), 0.04, 1e-4, own=True)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(s_BD.grad).all()


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_the_batch_does_not_matter(name):
    loss, student, teacher = build(name)
    order_B = torch.randperm(COUNT)
    reordered = [mapped(side, lambda x: x.detach()[order_B]) for side in (student, teacher)]
    expected = value_of(loss, student, teacher)
    assert value_of(loss, *reordered) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OF_TEACHER)
def test_the_length_of_the_teacher_s_vectors_does_not_matter(name):
    loss, student, teacher = build(name)
    expected = value_of(loss, student, teacher)
    scaled = mapped(teacher, lambda x: 3.7 * x)
    assert value_of(loss, student, scaled) == pytest.approx(expected, rel=1e-5)
    other = mapped(teacher, torch.randn_like)
    assert value_of(loss, student, other) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", HEADLESS)
def test_the_length_of_the_student_s_vectors_does_not_matter_without_a_head(name):
    loss, student, teacher = build(name)
    expected = value_of(loss, student, teacher)
    scaled = mapped(student, lambda x: 3.7 * x.detach())
    assert value_of(loss, scaled, teacher) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OF_TEACHER)
def test_no_teacher_s_vector_collects_a_gradient(name):
    loss, student, teacher = build(name)
    teacher = mapped(teacher, lambda x: x.requires_grad_())
    loss(student, teacher, batch_of()).backward()
    for view in (*teacher, *teacher.extra.values()):
        assert all(x.grad is None for x in (view.embedding_BD, *view.maps.values()))
