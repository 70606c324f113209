import pytest
import torch

from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.distill.interpolate import InterpolateSettings, Interpolation
from ssdistill.errors import UserError
from ssdistill.losses.simreg import SimReg
from ssdistill.models.backbones import EncoderSettings, build_encoder


def encoder(channels=(8, 16, 16, 16), layers=(1, 1, 0, 0)):
    args = {"layers": layers, "channels": channels, "stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16)


def flat(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def test_a_move_goes_the_given_share_of_the_way():
    student, teacher = encoder(), encoder()
    teacher.net.layer1[0].bn1.running_mean += 4.0
    ours, theirs = flat(student), flat(teacher)
    Interpolation(student, teacher, InterpolateSettings(alpha=0.25)).move()
    assert torch.allclose(flat(student), 0.75 * ours + 0.25 * theirs, atol=1e-6)
    assert torch.allclose(student.net.layer1[0].bn1.running_mean, torch.tensor(1.0))
    assert torch.equal(flat(teacher), theirs)


def test_alpha_one_makes_equal_networks_agree():
    student, teacher = encoder().eval(), encoder().eval()
    x_BCHW = torch.rand(2, 3, 16, 16)
    assert not torch.allclose(student(x_BCHW).embedding_BD, teacher(x_BCHW).embedding_BD)
    Interpolation(student, teacher, InterpolateSettings(alpha=1.0)).move()
    assert torch.allclose(student(x_BCHW).embedding_BD, teacher(x_BCHW).embedding_BD)


def test_only_tensors_of_equal_shape_move(caplog):
    student, teacher = encoder(), encoder((8, 24, 24, 24))
    wider = student.net.layer2[0].conv1.weight.detach().clone()
    interpolation = Interpolation(student, teacher, InterpolateSettings(alpha=1.0))
    interpolation.move()
    assert "match a teacher tensor and are interpolated" in caplog.text
    assert 0 < interpolation.fraction < 1
    assert torch.equal(student.net.layer1[0].conv1.weight, teacher.net.layer1[0].conv1.weight)
    assert torch.equal(student.net.layer2[0].conv1.weight, wider)


def test_during_training_every_so_many_steps_move():
    student, teacher = encoder(), encoder()
    settings = InterpolateSettings(alpha=0.5, when="during", every=2)
    interpolation, start = Interpolation(student, teacher, settings), flat(student)
    interpolation.after_step(0)
    assert torch.equal(flat(student), start)
    interpolation.after_step(1)
    assert torch.allclose(flat(student), (start + flat(teacher)) / 2, atol=1e-6)


def test_networks_with_nothing_in_common_are_refused():
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    teacher = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)
    with pytest.raises(
        UserError, match=r"interpolate: only 0 of the student's .* interpolate=null"
    ):
        Interpolation(encoder(), teacher, InterpolateSettings())


def test_a_share_below_what_was_asked_for_is_refused():
    teacher = encoder((8, 24, 24, 24))
    with pytest.raises(UserError, match=r"\(first without a match: 'layer2\..*'\)"):
        Interpolation(encoder(), teacher, InterpolateSettings(at_least=0.9))


def test_the_share_is_that_of_the_students_numbers_and_is_told(caplog):
    student, teacher = encoder(), encoder((8, 24, 24, 24))
    common = [
        (name, tensor)
        for name, tensor in student.net.state_dict().items()
        if tensor.is_floating_point() and teacher.net.state_dict()[name].shape == tensor.shape
    ]
    numbers = [t.numel() for t in student.net.state_dict().values() if t.is_floating_point()]
    share = sum(tensor.numel() for _, tensor in common) / sum(numbers)
    interpolation = Interpolation(student, teacher, InterpolateSettings(at_least=share))
    assert interpolation.names == [name for name, _ in common]
    assert interpolation.fraction == pytest.approx(share)
    told = f"{len(common)} of the student's {len(numbers)} tensors ({share:.1%})"
    assert f"interpolate: only {told} match a teacher tensor" in caplog.text
    with pytest.raises(UserError) as refused:
        Interpolation(student, teacher, InterpolateSettings(at_least=share + 1e-6))
    assert f"interpolate: only {told} match a teacher tensor by name" in str(refused.value)


def test_networks_that_match_entirely_are_not_warned_of(caplog):
    assert Interpolation(encoder(), encoder(), InterpolateSettings(at_least=1.0)).fraction == 1
    assert caplog.text == ""


@pytest.mark.parametrize(("when", "at_once"), [("before", True), ("during", False)])
def test_a_distiller_moves_before_training_or_during_it_and_never_both(when, at_once):
    student, teacher = encoder(), encoder()
    start = flat(student)
    settings = InterpolateSettings(alpha=0.5, when=when, every=1)
    losses = {"feature": SimReg(shapes(student, teacher, 10))}
    distiller = Distiller(student, teacher, losses, interpolate=settings)
    halfway = (start + flat(teacher)) / 2
    assert torch.allclose(flat(student), halfway if at_once else start, atol=1e-6)
    distiller.after_step(0, 10)
    assert torch.allclose(flat(student), halfway, atol=1e-6)
