import copy

import pytest
import torch

from ssdistill.data.batch import Batch
from ssdistill.distill.distiller import Distiller, encode_views, shapes
from ssdistill.errors import UserError
from ssdistill.losses import Loss, LossSettings, Shapes
from ssdistill.losses.simreg import SimReg
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import LOSSES

SIZE = 16


def small_encoder(channels=(8, 16, 16, 16), mean=(0.5, 0.5, 0.5)):
    args = {"layers": (1, 1, 0, 0), "channels": channels, "stem_type": "deep", "stem_width": 8}
    settings = EncoderSettings(name="resnet10t", args=args, stem_stride=2)
    return build_encoder(settings, SIZE, mean=mean)


class ReadsMaps(Loss):
    views = 2
    student_taps = teacher_taps = ("layer1",)

    def forward(self, student, teacher, batch):
        pairs = zip(student, teacher, strict=True)
        return sum(s.maps["layer1"].mean() - t.maps["layer1"].mean() for s, t in pairs)


@pytest.fixture
def distiller():
    torch.manual_seed(0)
    student, teacher = small_encoder(), small_encoder((8, 32, 32, 32), mean=(0.1, 0.2, 0.3))
    losses = {"feature": SimReg(shapes(student, teacher, 100), depth=2)}
    return Distiller(student, teacher, losses, {"feature": LossSettings(weight=2.0)})


def make_batch(count=4):
    images = torch.zeros(count, SIZE, SIZE, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, 0, 10)


def make_views(number=1, count=4, size=SIZE):
    return [torch.rand(count, 3, size, size) for _ in range(number)]


def test_losses_come_back_unweighted_by_name(distiller):
    losses = distiller(make_views(), make_batch())
    assert list(losses) == ["feature"]
    assert losses["feature"].shape == ()
    assert distiller.weights_at(0, 10) == {"feature": 2.0}


def test_a_step_trains_student_and_head_and_leaves_the_teacher_untouched(distiller):
    teacher_before = copy.deepcopy(distiller.teacher.state_dict())
    student_before = copy.deepcopy(distiller.student.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller.train()
    for _ in range(2):
        sum(distiller(make_views(2), make_batch()).values()).backward()
        optimizer.step()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    for name, value in distiller.teacher.state_dict().items():
        assert torch.equal(value, teacher_before[name]), name
    assert not torch.equal(
        distiller.student.net.layer1[0].conv1.weight, student_before["net.layer1.0.conv1.weight"]
    )
    assert all(p.grad is not None for p in distiller.parameters())


def test_the_teacher_stays_in_eval_mode(distiller):
    distiller.train()
    assert distiller.student.training
    assert not any(m.training for m in distiller.teacher.modules())
    distiller.teacher.train()
    distiller.train()
    assert not any(m.training for m in distiller.teacher.modules())


def test_parameters_and_state_leave_the_teacher_out(distiller):
    teacher_parameters = {id(p) for p in distiller.teacher.parameters()}
    assert not teacher_parameters & {id(p) for p in distiller.parameters()}
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"encoder", "losses"}
    assert all(p.requires_grad for p in distiller.parameters())


def test_the_teacher_follows_a_change_of_dtype(distiller):
    distiller.double()
    assert {p.dtype for p in distiller.teacher.parameters()} == {torch.float64}
    losses = distiller([v.double() for v in make_views()], make_batch())
    assert torch.isfinite(losses["feature"])


def test_each_network_normalizes_for_itself(distiller):
    view = make_views()[0]
    distiller.eval()
    target = distiller.targets({0: view}, make_batch())[0]
    net, teacher = distiller.teacher.net, distiller.teacher
    normalized = (view - torch.tensor((0.1, 0.2, 0.3)).view(1, 3, 1, 1)) / teacher.std
    assert torch.allclose(target.embedding_BD, net(normalized), atol=1e-6)


def test_views_of_one_size_share_one_forward(distiller):
    calls = []
    for encoder in (distiller.student, distiller.teacher):
        encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    distiller(make_views(3), make_batch())
    assert calls == [12, 12]


def test_views_of_different_sizes_keep_their_order(distiller):
    encoder = distiller.teacher
    views = [make_views(size=16)[0], make_views(size=12)[0], make_views(size=16)[0]]
    found = encode_views(encoder, dict(enumerate(views)))
    for number, view in enumerate(views):
        assert torch.allclose(found[number].embedding_BD, encoder(view).embedding_BD, atol=1e-5)


def test_the_last_embedding_is_the_first_view_s(distiller):
    distiller.eval()
    views = make_views(2)
    distiller(views, make_batch())
    expected_BD = distiller.student(views[0]).embedding_BD
    assert torch.allclose(distiller.last_embeddings[0], expected_BD, atol=1e-5)
    assert not distiller.last_embeddings[0].requires_grad


def test_the_maps_a_loss_reads_are_tapped_and_its_views_counted():
    student, teacher = small_encoder(), small_encoder()
    both = shapes(student, teacher, 100)
    losses = {"maps": ReadsMaps(both), "feature": SimReg(both)}
    distiller = Distiller(student, teacher, losses)
    assert student.taps == teacher.taps == ("layer1",)
    assert distiller.num_views == 2
    assert torch.isfinite(distiller(make_views(2), make_batch())["maps"])


@pytest.mark.parametrize("reads", [(), ("first",), ("second",), ("first", "second")])
def test_a_teacher_projects_where_one_loss_or_more_reads_that(reads):
    student, teacher = small_encoder(), small_encoder((8, 32, 32, 32))
    teacher.projector = torch.nn.Linear(32, 5)
    losses = {name: SimReg(shapes(student, teacher, 100)) for name in ("first", "second")}
    for name in reads:
        losses[name].reads_projection = True
    distiller = Distiller(student, teacher, losses)
    found = distiller.targets(dict(enumerate(make_views(2))), make_batch())
    expected = [(4, 5), (4, 5)] if reads else [None, None]
    projections = [found[view].projection_BP for view in (0, 1)]
    assert [None if z_BP is None else tuple(z_BP.shape) for z_BP in projections] == expected


def test_shapes_name_every_map_and_leave_the_taps_alone():
    student, teacher = small_encoder(), small_encoder((8, 32, 32, 32))
    student.set_taps(("layer1",))
    found = shapes(student, teacher, 77)
    assert isinstance(found, Shapes)
    assert (found.student_dim, found.teacher_dim, found.num_samples) == (16, 32, 77)
    assert list(found.student_maps) == student.tap_names
    assert found.teacher_maps["layer2"][0] == 32
    assert student.taps == ("layer1",)
    assert teacher.taps == ()


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], [], "at least one"),
        (["a"], ["b"], "settings for unknown loss 'b'"),
        (["a.b"], ["a.b"], "invalid name 'a.b'"),
        (["train"], ["train"], "invalid name 'train'"),
    ],
)
def test_names_that_cannot_work_are_refused(names, weights, message):
    student, teacher = small_encoder(), small_encoder()
    losses = {name: SimReg(Shapes(16, 16, 100)) for name in names}
    with pytest.raises(UserError, match=message):
        Distiller(student, teacher, losses, dict.fromkeys(weights, LossSettings()))


def test_a_loaded_state_continues_exactly(distiller):
    views, batch = make_views(2), make_batch()
    distiller.train()
    distiller(views, batch)
    other = Distiller(
        small_encoder(),
        distiller.teacher,
        {"feature": SimReg(shapes(distiller.student, distiller.teacher, 100), depth=2)},
        distiller.settings,
    )
    other.load_state_dict(distiller.state_dict())
    other.train()
    assert torch.equal(distiller(views, batch)["feature"], other(views, batch)["feature"])


class Remembering(Loss):
    """Keeps what it was given."""

    def __init__(self, shapes):
        super().__init__(shapes)
        self.momentum = 0.9

    def forward(self, student, teacher, batch):
        self.student, self.teacher = student, teacher
        return student[0].embedding_BD.mean()


def remember(momentum=0.9, extra_student=(), extra_teacher=(), **settings):
    torch.manual_seed(0)
    student, teacher = small_encoder(), small_encoder((8, 32, 32, 32))
    loss = Remembering(shapes(student, teacher, 100))
    loss.momentum, loss.extra_student, loss.extra_teacher = momentum, extra_student, extra_teacher
    distiller = Distiller(student, teacher, {"kept": loss}, {"kept": LossSettings(**settings)})
    return distiller.eval(), loss


def test_a_loss_gets_the_views_its_pairs_name():
    distiller, loss = remember(pairs=((1, 0), (2, 0)))
    views = make_views(3)
    distiller(views, make_batch())
    for got, view in zip(loss.student, (views[1], views[2]), strict=True):
        assert torch.allclose(got.embedding_BD, distiller.student(view).embedding_BD, atol=1e-5)
    expected_BD = distiller.teacher(views[0]).embedding_BD
    assert all(torch.allclose(t.embedding_BD, expected_BD, atol=1e-5) for t in loss.teacher)
    assert loss.teacher.distinct == [0]


def test_no_network_encodes_a_view_it_is_not_asked_for():
    distiller, _ = remember(momentum=None, pairs=((0, 1),))
    counts = []
    for encoder in (distiller.student, distiller.teacher):
        encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    distiller(make_views(3), make_batch())
    assert counts == [4, 4]


def test_pairs_that_name_no_view_are_refused_with_the_loss():
    distiller, _ = remember(pairs=((0, 2),))
    with pytest.raises(UserError, match=r"losses\.kept\.pairs: \[0, 2\]: no view 2"):
        distiller(make_views(2), make_batch())


def test_extra_views_reach_the_networks_that_read_them_by_name():
    distiller, loss = remember(
        extra_student=("rotated_90", "neighbor_0"), extra_teacher=("neighbor_1", "rotated_90")
    )
    assert distiller.extra_views == ("rotated_90", "neighbor_0", "neighbor_1")
    views = make_views(4)
    distiller(views, make_batch())
    assert set(loss.student.extra) == {"rotated_90", "neighbor_0"}
    assert set(loss.teacher.extra) == {"rotated_90", "neighbor_1"}
    expected_BD = distiller.teacher(views[3]).embedding_BD
    assert torch.allclose(loss.teacher.extra["neighbor_1"].embedding_BD, expected_BD, atol=1e-5)


def test_the_student_s_moving_average_follows_it_and_gets_no_gradient():
    distiller, loss = remember()
    views = make_views(1)
    distiller(views, make_batch())["kept"].backward()
    assert not loss.student.momentum[0].embedding_BD.requires_grad
    assert all(p.grad is None for p in distiller.momentum_student.parameters())
    before = next(distiller.momentum_student.parameters()).clone()
    online = next(distiller.student.parameters())
    with torch.no_grad():
        online += 1.0
    distiller.after_step(0, 10)
    after = next(distiller.momentum_student.parameters())
    assert torch.allclose(after, 0.9 * before + 0.1 * online)


def test_two_momentums_of_one_average_are_refused():
    student, teacher = small_encoder(), small_encoder()
    losses = {name: Remembering(shapes(student, teacher, 100)) for name in "ab"}
    losses["b"].momentum = 0.5
    with pytest.raises(UserError, match=r"losses\.a\.momentum=0\.9, losses\.b\.momentum=0\.5"):
        Distiller(student, teacher, losses)


class Counting(SimReg):
    """Notes when it is told that a step is done, and where the student stood by then."""

    def __init__(self, given):
        super().__init__(given)
        self.seen = []

    def after_step(self, step, num_steps):
        self.seen.append((step, num_steps))


def test_every_loss_hears_of_every_step_once():
    student, teacher = small_encoder(), small_encoder()
    losses = {name: Counting(shapes(student, teacher, 100)) for name in ("first", "second")}
    distiller = Distiller(student, teacher, losses)
    for step in range(3):
        distiller.after_step(step, 7)
    assert all(loss.seen == [(0, 7), (1, 7), (2, 7)] for loss in losses.values())


def test_the_moving_head_of_a_loss_follows_its_head():
    torch.manual_seed(0)
    student, teacher = small_encoder(), small_encoder()
    settings = LOSSES.schema("disco")(kind="disco")
    loss = LOSSES.build(settings, shapes(student, teacher, 100))
    distiller = Distiller(student, teacher, {"disco": loss})
    trained = {id(p) for p in loss.parameters() if p.requires_grad}
    moving = [p for p in loss.parameters() if id(p) not in trained]
    moving += list(distiller.momentum_student.parameters())
    with torch.no_grad():
        for parameter in distiller.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    before = [p.clone() for p in moving]
    distiller.after_step(0, 10)
    assert moving and all(not torch.equal(p, b) for p, b in zip(moving, before, strict=True))


def test_infonce_looks_for_the_key_of_the_other_view_behind_a_distiller():
    student, teacher = small_encoder(), small_encoder()
    loss = LOSSES.build(LOSSES.schema("infonce")(kind="infonce"), shapes(student, teacher, 100))
    distiller = Distiller(student, teacher, {"contrast": loss}).eval()
    seen = {}

    def note(student, teacher, batch):
        seen.update(student=student, teacher=teacher)
        return torch.zeros(())

    loss.forward = note
    views = make_views(2)
    distiller(views, make_batch())
    with torch.no_grad():
        keys = [teacher(view).embedding_BD for view in (views[1], views[0])]
    found = [r.embedding_BD for r in seen["teacher"]]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, keys, strict=True))
