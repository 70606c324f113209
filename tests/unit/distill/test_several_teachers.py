import copy

import pytest
import torch

from ssdistill.data.batch import Batch
from ssdistill.distill.build import build_losses
from ssdistill.distill.distiller import Distiller
from ssdistill.distill.dropping import draw_dropped
from ssdistill.distill.interpolate import InterpolateSettings
from ssdistill.errors import UserError
from ssdistill.losses.unic import mean_over_kept_teachers
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import LOSSES

SIZE, COUNT, NUM_SAMPLES = 16, 6, 100


def convolutional(*channels):
    args = {"layers": (1, 1, 0, 0), "channels": channels, "stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), SIZE)


def transformer(width=32):
    args = {"img_size": SIZE, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), SIZE)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return convolutional(8, 16, 16, 16)


@pytest.fixture
def teachers():
    torch.manual_seed(1)
    return {"cnn": convolutional(8, 24, 24, 24), "vit": transformer()}


def settings_of(**losses):
    return {name: LOSSES.schema(loss["kind"])(**loss) for name, loss in losses.items()}


BOTH = settings_of(
    unic={"kind": "unic", "weight": 2.0},
    point={"kind": "simreg", "depth": 2, "weight": 0.5},
)


def make(student, teachers, settings=BOTH, seed=2, **more):
    torch.manual_seed(seed)
    losses = build_losses(student, teachers, settings, NUM_SAMPLES)
    return Distiller(student, teachers, losses, settings, **more)


def make_batch(step=0, index_B=None):
    images = torch.zeros(COUNT, SIZE, SIZE, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT) if index_B is None else index_B, 0, step, 10)


def make_views(number=1, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(COUNT, 3, SIZE, SIZE, generator=generator) for _ in range(number)]


def total_of(distiller, views, batch):
    losses = distiller(views, batch)
    weights = distiller.weights_at(batch.step, batch.num_steps)
    assert losses.keys() == weights.keys()
    return sum(weights[name] * loss for name, loss in losses.items())


def gradients(distiller, value):
    """By name, the heads' in the order of the losses."""
    distiller.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in distiller.named_parameters()}


def test_every_loss_exists_once_for_each_teacher_and_fits_its_width(student, teachers):
    losses = build_losses(student, teachers, BOTH, NUM_SAMPLES)
    assert list(losses) == ["unic/cnn", "unic/vit", "point/cnn", "point/vit"]
    assert [losses[f"unic/{name}"].shapes.teacher_dim for name in teachers] == [24, 32]
    assert losses["unic/vit"].shapes.teacher_name == "vit_tiny_patch16_224"


def test_two_teachers_weigh_as_much_as_each_alone_on_average(student, teachers):
    both = make(student, teachers)
    expected = []
    for name, teacher in teachers.items():
        alone = make(copy.deepcopy(student), copy.deepcopy(teacher))
        for loss in BOTH:
            alone.losses[loss].load_state_dict(both.losses[f"{loss}/{name}"].state_dict())
        expected.append(total_of(alone.train(), make_views(2), make_batch()))
    found = total_of(both.train(), make_views(2), make_batch())
    assert torch.allclose(found, torch.stack(expected).mean(), rtol=1e-5)
    assert not torch.allclose(*expected, rtol=1e-2)


def test_one_teacher_with_a_name_is_like_one_without(student, teachers):
    plain = make(copy.deepcopy(student), copy.deepcopy(teachers["cnn"]))
    named = make(student, {"any": teachers["cnn"]})
    assert list(named.losses) == ["unic", "point"]
    assert plain.state_dict().keys() == named.state_dict().keys()
    assert plain.weights_at(0, 10) == named.weights_at(0, 10) == {"unic": 2.0, "point": 0.5}
    ours, theirs = (d.train()(make_views(), make_batch()) for d in (plain, named))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert named.teacher is named.teachers["any"] is teachers["cnn"]
    assert plain.teachers == {"teacher": plain.teacher}


def test_a_loss_may_learn_from_one_teacher_with_its_whole_weight(student, teachers):
    settings = BOTH | settings_of(only={"kind": "mse", "teacher": "vit", "weight": 3.0})
    distiller = make(student, teachers, settings)
    weights = distiller.weights_at(0, 10)
    assert weights == {
        "unic/cnn": 1.0,
        "unic/vit": 1.0,
        "point/cnn": 0.25,
        "point/vit": 0.25,
        "only/vit": 3.0,
    }
    assert list(distiller.losses_of("vit")) == ["unic/vit", "point/vit", "only/vit"]
    assert list(distiller.losses_of("cnn")) == ["unic/cnn", "point/cnn"]


def test_the_teachers_stay_frozen_and_out_of_the_state(student, teachers):
    before = {name: copy.deepcopy(teacher.state_dict()) for name, teacher in teachers.items()}
    distiller = make(student, teachers)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller.train()
    for step in range(2):
        total_of(distiller, make_views(), make_batch(step)).backward()
        optimizer.step()
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"encoder", "losses"}
    ours = {id(p) for p in distiller.parameters()}
    for name, teacher in distiller.teachers.items():
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert not ours & {id(p) for p in teacher.parameters()}
        assert not any(module.training for module in teacher.modules())
        for key, value in teacher.state_dict().items():
            assert torch.equal(value, before[name][key]), key
    assert all(p.grad is not None for p in distiller.parameters())
    distiller.double()
    assert all(t.mean.dtype == torch.float64 for t in distiller.teachers.values())


def test_each_teacher_encodes_the_views_its_own_losses_read(student, teachers):
    settings = settings_of(
        first={"kind": "mse", "teacher": "cnn", "pairs": [[1, 0]]},
        second={"kind": "mse", "teacher": "vit", "pairs": [[0, 1], [1, 2]]},
    )
    distiller = make(student, teachers, settings)
    distiller.losses["second/vit"].extra_teacher = ("rotated_90",)
    distiller.extra_views = ("rotated_90",)
    seen = {}
    for name, teacher in teachers.items():
        teacher.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    views = make_views(4)
    distiller(views, make_batch())
    assert torch.equal(seen["cnn"], views[0])
    assert torch.equal(seen["vit"], torch.cat(views[1:]))


def test_maps_are_tapped_for_each_teacher_by_itself(student, teachers):
    settings = settings_of(
        maps={"kind": "mse", "read": "maps", "maps": [["layer1", "blocks.0"]], "teacher": "vit"},
        point={"kind": "simreg", "depth": 1},
    )
    distiller = make(student, teachers, settings)
    assert student.taps == ("layer1",)
    assert {name: t.taps for name, t in teachers.items()} == {"cnn": (), "vit": ("blocks.0",)}
    assert torch.isfinite(total_of(distiller, make_views(), make_batch()))


def by_hand(distiller, views, batch, probability):
    """The loss with dropping, from the definition, over deep copies of the losses."""
    distiller = copy.deepcopy(distiller)
    sizes = [view.shape[-1] for view in views]
    pairs = {name: distiller.pairs_of(name, sizes) for name in distiller.losses}
    ours = distiller._student_outputs(views, {}, pairs, batch)
    theirs = distiller._teacher_outputs(views, {}, pairs, batch)
    weights = distiller.weights_at(batch.step, batch.num_steps)
    loss_TB = torch.zeros(len(distiller.teachers), COUNT)
    for row, teacher in enumerate(distiller.teachers):
        for name, loss in distiller.losses_of(teacher).items():
            loss_B = loss.per_image(ours[name], theirs[name], batch)
            loss_TB[row] = loss_TB[row] + weights[name] * loss_B
    dropped_TB = draw_dropped(batch, len(loss_TB), probability)
    kept = mean_over_kept_teachers(loss_TB * len(loss_TB), dropped_TB)
    return gradients(distiller, kept), float(loss_TB.detach().sum(0).mean())


@pytest.mark.parametrize("probability", [0.5, 1.0])
@pytest.mark.parametrize("alone", [False, True])
def test_dropping_has_the_gradient_of_the_kept_and_the_value_of_all(
    student, teachers, probability, alone
):
    settings = dict(BOTH)
    if alone:
        settings |= settings_of(more={"kind": "smooth_l1", "teacher": "cnn", "weight": 1.5})
    distiller = make(student, teachers, settings, teacher_dropping=probability).train()
    undropped = copy.deepcopy(distiller)
    undropped.dropping = None
    views, batch = make_views(2), make_batch(step=4)
    expected, mean = by_hand(distiller, views, batch, probability)
    losses = undropped(views, batch)
    found = distiller(views, batch)
    for name, loss in losses.items():
        assert torch.allclose(found[name], loss, rtol=1e-5), name
    weights = distiller.weights_at(4, 10)
    total = sum(weights[name] * loss for name, loss in found.items())
    assert float(total.detach()) == pytest.approx(mean, rel=1e-5)
    grads = gradients(distiller, total)
    assert grads.keys() == expected.keys()
    for name in grads:
        assert torch.allclose(grads[name], expected[name], rtol=1e-4, atol=1e-7), name
    plain = gradients(undropped, sum(weights[name] * loss for name, loss in losses.items()))
    apart = {n for n in grads if (grads[n] - plain[n]).norm() > 0.01 * plain[n].norm()}
    assert {name.split(".")[0] for name in apart} == {"encoder", "losses"}


def test_a_loaded_state_continues_exactly_with_the_same_teachers_dropped(student, teachers):
    first = make(student, teachers, teacher_dropping=0.5).train()
    total_of(first, make_views(), make_batch(0)).backward()
    fresh = convolutional(8, 16, 16, 16)
    second = make(fresh, teachers, seed=9, teacher_dropping=0.5).train()
    second.load_state_dict(first.state_dict())
    torch.manual_seed(11)
    views, batch = make_views(seed=5), make_batch(1)
    expected = gradients(first, total_of(first, views, batch))
    torch.manual_seed(12)
    found = gradients(second, total_of(second, views, batch))
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def fail_to_make(student, teachers, settings=BOTH, **more):
    with pytest.raises(UserError) as caught:
        make(student, teachers, settings, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_teacher_nobody_knows_is_refused_with_the_nearest(student, teachers):
    settings = settings_of(unic={"kind": "unic", "teacher": "vti"})
    for known in (teachers, {"vit": teachers["vit"]}):
        message = fail_to_make(student, known, settings)
        assert message.startswith("losses.unic.teacher: unknown teacher 'vti'")
        assert "did you mean 'vit'?" in message


def test_a_teacher_without_a_loss_is_refused(student, teachers):
    settings = settings_of(unic={"kind": "unic", "teacher": "cnn"})
    assert fail_to_make(student, teachers, settings).startswith(
        "teachers.vit: unused by every loss"
    )


def test_a_loss_that_one_teacher_cannot_serve_names_both(student, teachers):
    settings = settings_of(logits={"kind": "kd", "logits": "projection"})
    message = fail_to_make(student, teachers, settings)
    assert message.startswith("losses.logits from cnn: kd: logits=projection: the teacher has no")
    message = fail_to_make(student, teachers["cnn"], settings)
    assert message.startswith("losses.logits: kd: logits=projection: the teacher has no")


def test_dropping_needs_several_teachers_and_means_over_images(student, teachers):
    more = {"teacher_dropping": 0.5}
    message = fail_to_make(student, teachers["cnn"], **more)
    assert (
        message
        == "teacher_dropping requires at least two teachers, got 1; set teacher_dropping=null"
    )
    settings = BOTH | settings_of(queue={"kind": "seed"})
    message = fail_to_make(student, teachers, settings, **more)
    assert message.startswith("losses.queue: not a mean over images")
    assert make(student, teachers, settings, teacher_dropping=0.0).dropping is None


def test_weights_move_towards_one_teacher_only(student, teachers):
    message = fail_to_make(student, teachers, interpolate=InterpolateSettings())
    assert message == "interpolate requires a single teacher, got 2; set interpolate=null"


@pytest.mark.parametrize("name", ["a/b", "a.b", ""])
def test_names_no_metric_can_have_are_refused(student, teachers, name):
    message = fail_to_make(student, {name: teachers["cnn"], "vit": teachers["vit"]})
    assert message.startswith(f"teachers: invalid name '{name}'")


def test_no_teacher_and_losses_without_teacher_are_refused(student, teachers):
    assert fail_to_make(student, {}).startswith("teachers: at least one")
    losses = build_losses(student, teachers["cnn"], BOTH, NUM_SAMPLES)
    with pytest.raises(UserError, match=r"'unic' does not name a teacher; .* one of cnn, vit"):
        Distiller(student, teachers, losses, BOTH)
