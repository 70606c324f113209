import pytest
import torch

import ssdistill
from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.on_tensors import TensorLoss
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings.registry import LOSSES


def test_a_loss_is_a_function_of_its_module():
    torch.manual_seed(0)
    loss = ssdistill.losses.simreg(6, 4, depth=2)
    assert isinstance(loss, TensorLoss)
    student_BD = torch.randn(5, 6, requires_grad=True)
    value = loss(student_BD, torch.randn(5, 4))
    value.backward()
    assert value.shape == () and student_BD.grad.abs().sum() > 0
    assert all(p.grad is not None for p in loss.parameters())


def test_it_is_what_the_distiller_computes():
    student_BD, teacher_BD = torch.randn(5, 6), torch.randn(5, 4)
    torch.manual_seed(0)
    loss = ssdistill.losses.simreg(6, 4, weight=3.0)
    torch.manual_seed(0)
    plain = LOSSES.build(LOSSES.schema("simreg")(), Shapes(6, 4, 1))
    batch = Batch(None, torch.arange(5), 0, 0, 1)
    outputs = (Outputs([Representation(x)]) for x in (student_BD, teacher_BD))
    assert torch.equal(loss(student_BD, teacher_BD), 3 * plain(*outputs, batch))


def test_queues_advance_and_are_saved():
    loss = ssdistill.losses.infonce(4, 4, queue=8)
    before = {name: tensor.clone() for name, tensor in loss.named_buffers()}
    views = [torch.randn(4, 4) for _ in range(2)]
    loss(views, views)
    assert loss.step == 1
    assert any(not torch.equal(before[name], tensor) for name, tensor in loss.named_buffers())
    assert loss.state_dict().keys() >= before.keys()


def test_maps_and_schedules():
    shapes = {"student_maps": {"a": (3, 4, 4)}, "teacher_maps": {"b": (5, 4, 4)}}
    loss = ssdistill.losses.at(4, 4, **shapes, num_steps=2, schedule="cosine")
    student = {"embedding": torch.randn(2, 4), "a": torch.randn(2, 3, 4, 4)}
    teacher = {"embedding": torch.randn(2, 4), "b": torch.randn(2, 5, 4, 4)}
    first, last = loss(student, teacher), loss(student, teacher)
    assert float(first) > 0 and float(last) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", LOSSES.classes)
def test_every_loss_of_embeddings_serves_or_says_why_not(kind):
    try:
        loss = TensorLoss(kind, 8, 8, num_samples=6, teacher_projection_dim=8)
    except UserError as refused:
        assert str(refused).startswith(kind)
        return
    cls = LOSSES[kind]
    loss.fit_teacher(torch.randn(6, 8), torch.randn(6, 8))
    views = [
        {"embedding": torch.randn(6, 8), "projection": torch.randn(6, 8)} for _ in range(cls.views)
    ]
    value = loss(views, views, torch.arange(6))
    assert torch.isfinite(value)
    loss.after_step()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ssdistill.losses.simreg(4, 4, dept=2), r"simreg\.dept: .*did you mean 'depth'"),
        (lambda: ssdistill.losses.sskd(4, 4), "sskd: .*only ssdistill.distill makes"),
        (lambda: ssdistill.losses.at(4, 4), "at"),
        (lambda: ssdistill.losses.crd(4, 4, num_samples=9)([torch.ones(2, 4)], []), "views"),
        (lambda: ssdistill.losses.mse(4, 4)({"x": torch.ones(2)}, torch.ones(2, 4)), "embedding"),
    ],
)
def test_wrong_calls_are_named(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_what_is_no_loss_cannot_be_called():
    import ssdistill.losses.on_tensors as module

    with pytest.raises(TypeError, match="cannot be called"):
        module(4, 4)
    with pytest.raises(AttributeError):
        ssdistill.losses.no_such_loss  # noqa: B018


STUDENT, TEACHER = torch.randn(6, 6), torch.randn(6, 10)
CRD = {"num_samples": 100}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ssdistill.losses.kdep(6, 10)(STUDENT, TEACHER), "call fit_teacher"),
        (lambda: ssdistill.losses.crd(6, 10, **CRD)(STUDENT, TEACHER), "pass index_B"),
        (
            lambda: ssdistill.losses.crd(6, 10, **CRD)(STUDENT, TEACHER, torch.arange(6) + 99),
            r"from 0 to 99 \(num_samples=100\)",
        ),
        (lambda: ssdistill.losses.simreg(7, 10)(STUDENT, TEACHER), r"must be \(B, 7\)"),
        (lambda: ssdistill.losses.simreg(6, 9)(STUDENT, TEACHER), "made with teacher_dim=9"),
        (lambda: ssdistill.losses.koleo(6, 10)(STUDENT, TEACHER[:3]), "as many rows"),
        (lambda: ssdistill.losses.simreg(6, 10)(STUDENT[:0], TEACHER[:0]), r"got \(0, 6\)"),
        (lambda: ssdistill.losses.simreg(6, 10)(STUDENT.numpy(), TEACHER), "pass a tensor"),
        (lambda: ssdistill.losses.simreg(6, 10)(None, TEACHER), "pass a tensor"),
        (lambda: ssdistill.losses.simreg(0, 10), "student_dim=0: expected a whole number"),
        (lambda: ssdistill.losses.simreg(6, "10"), "teacher_dim='10'"),
        (lambda: ssdistill.losses.simreg(6, 10, num_steps=0), "num_steps=0"),
    ],
)
def test_tensors_of_other_shapes_are_refused_in_one_line(call, said):
    with pytest.raises(UserError, match=said) as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["simreg", "pkt", "at"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_those_of_the_networks_and_not_of_the_loss(kind, dtype):
    maps = {"student_maps": {"a": (3, 2, 2)}, "teacher_maps": {"a": (3, 2, 2)}}
    loss = TensorLoss(kind, 6, 10, **(maps if kind == "at" else {}), num_samples=20)
    views = [
        {"embedding": x.to(dtype), "a": torch.randn(6, 3, 2, 2, dtype=dtype)}
        for x in (STUDENT, TEACHER)
    ]
    views = views if kind == "at" else [view["embedding"] for view in views]
    assert loss(*views).isfinite()


def test_a_schedule_goes_on_after_a_restart():
    loss = ssdistill.losses.simreg(6, 10, num_steps=4, schedule="cosine")
    loss(STUDENT, TEACHER)
    other = ssdistill.losses.simreg(6, 10, num_steps=4, schedule="cosine")
    other.load_state_dict(loss.state_dict())
    assert other.step == loss.step == 1
    assert torch.equal(other(STUDENT, TEACHER), loss(STUDENT, TEACHER))


def test_a_loss_fitted_before_it_was_saved_is_fitted():
    loss = ssdistill.losses.kdep(6, 10)
    loss.fit_teacher(torch.randn(50, 10))
    other = ssdistill.losses.kdep(6, 10)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(STUDENT, TEACHER), loss(STUDENT, TEACHER))


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'simreg'"):
        _ = ssdistill.losses.simregg


def test_maps_that_a_loss_needs_are_named():
    with pytest.raises(UserError, match=r"no feature maps; arguments for it: .*student_maps="):
        ssdistill.losses.at(8, 12)
    maps = {"student_maps": {"a": (8, 4, 4)}, "teacher_maps": {"b": (12, 4, 4)}}
    with pytest.raises(UserError, match=r"^fitnet: the student's map 'a' is missing; pass a map"):
        ssdistill.losses.fitnet(8, 12, **maps)(torch.rand(2, 8), torch.rand(2, 12))
