"""What holds for single losses over distributions of similarities: the traps of each."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_outputs, make_shapes, mapped
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distill.bank import Bank
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.errors import UserError
from ssdistill.losses import LossSettings, Shapes
from ssdistill.losses.compress import CompRess
from ssdistill.losses.dogo import DoGo, view_divergence
from ssdistill.losses.isd import ISD
from ssdistill.losses.lightly import Lightly, token_divergence
from ssdistill.losses.ressl import ReSSL
from ssdistill.losses.seed import SEED
from ssdistill.losses.similarity import QueueLoss, divergences, queue_divergence, unit
from ssdistill.losses.sskd import SSKD, kept_rows, rotation_divergence
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder
from ssdistill.models.representation import Outputs, Representation

COUNT, WIDTH, QUEUE = 8, 16, 24
KNOWN = Shapes(WIDTH, WIDTH, num_samples=40)
OF_QUEUE = {
    "seed": SEED,
    "compress-1q": lambda known: CompRess(known, variant="1q"),
    "compress-2q": lambda known: CompRess(known, variant="2q"),
    "isd": ISD,
    "ressl": ReSSL,
    "lightly": Lightly,
}
BY_MOMENTUM = {
    "isd": lambda known: ISD(known, target="momentum"),
    "isd-projection": lambda known: ISD(known, target="momentum", projection_dim=6),
    "ressl": lambda known: ReSSL(known, target="momentum", dim=6),
}


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(*embeddings: Tensor, momentum: tuple[Tensor, ...] = ()) -> Outputs:
    views = [Representation(x_BD) for x_BD in embeddings]
    return Outputs(views, momentum=[Representation(x_BD) for x_BD in momentum])


def batch_of(step: int = 0) -> Batch:
    images = torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT), 0, step, 10)


def bare(loss: QueueLoss) -> QueueLoss:
    """The loss on the embeddings as they are."""
    loss.head = loss.predictor = nn.Identity()
    return loss


def holding(bank: Bank, queue_KD: Tensor) -> Bank:
    """A bank like this one with other keys of the teacher's side."""
    bank = copy.deepcopy(bank)
    bank.teacher.copy_(queue_KD)
    return bank


def near(value: Tensor, rel: float = 1e-5):
    return pytest.approx(float(value.detach()), rel=rel)


def test_seed_with_the_published_temperature_is_infonce():
    loss = bare(SEED(KNOWN, queue=QUEUE, temperature_teacher=1e-4))
    s_BD, t_BD = rows(1, COUNT, WIDTH), rows(2, COUNT, WIDTH)
    own_B1 = (unit(s_BD) * unit(t_BD)).sum(1, keepdim=True)
    logits_BK = torch.cat([own_B1, unit(s_BD) @ loss.bank["teacher"].T], 1) / 0.2
    expected = F.cross_entropy(logits_BK, torch.zeros(COUNT, dtype=torch.int64))
    assert float(loss(outputs(s_BD), outputs(t_BD), batch_of())) == near(expected)


@pytest.mark.parametrize("name", ["seed", "compress-1q", "isd", "ressl", "lightly"])
def test_keys_join_the_queue_after_scoring_and_with_lightly_before(name):
    loss = bare(OF_QUEUE[name](KNOWN))
    s_BD, t_BD = rows(1, COUNT, WIDTH), rows(2, COUNT, WIDTH)
    before_KD = loss.bank["teacher"]
    value = loss(outputs(s_BD), outputs(t_BD), batch_of())
    after_KD = loss.bank["teacher"]
    assert torch.equal(after_KD[:COUNT], unit(t_BD))
    assert torch.equal(after_KD[COUNT:], before_KD[COUNT:])
    seen, unseen = (after_KD, before_KD) if name == "lightly" else (before_KD, after_KD)
    expected, other = (
        loss.compare(s_BD, [t_BD], queue_KD, holding(loss.bank, queue_KD))
        for queue_KD in (seen, unseen)
    )
    assert float(value) == near(expected, 1e-6)
    assert float(value) != near(other, 1e-3)


@pytest.mark.parametrize("name", OF_QUEUE)
def test_a_teacher_s_view_in_several_pairs_joins_the_queue_once(name):
    loss = OF_QUEUE[name](KNOWN)
    first, second = (Representation(rows(seed, COUNT, WIDTH)) for seed in (1, 2))
    student = outputs(*(rows(seed, COUNT, WIDTH) for seed in (3, 4, 5, 6)))
    loss(student, Outputs([first, second, first, second]), batch_of())
    assert loss.bank.pushed == 2 * COUNT
    expected = torch.cat([unit(view.embedding_BD) for view in (first, second)])
    assert torch.equal(loss.bank.teacher[: 2 * COUNT], expected)


def test_small_patches_of_seed_have_a_queue_of_their_own():
    loss = bare(SEED(KNOWN, queue=3 * COUNT, small_views=2))
    ours, theirs = ([rows(10 * side + v, COUNT, WIDTH) for v in range(4)] for side in (1, 2))
    banks = loss.bank["teacher"], loss.small_bank["teacher"]
    value = loss(outputs(*ours), outputs(*theirs), batch_of())
    parts = [
        queue_divergence(torch.cat(s), torch.cat(t), q, q, 0.2, 0.01, own=True, kl=False)
        for s, t, q in zip((ours[:2], ours[2:]), (theirs[:2], theirs[2:]), banks, strict=True)
    ]
    assert float(value) == near(sum(parts), 1e-6)
    assert loss.bank.pushed == 2 * COUNT and loss.small_bank.pushed == COUNT
    assert torch.equal(loss.bank.teacher[: 2 * COUNT], unit(torch.cat(theirs[:2])))
    assert torch.equal(loss.small_bank.teacher[:COUNT], unit(theirs[2]))
    with pytest.raises(UserError, match="small_views=2 of 2 pairs"):
        loss(outputs(*ours[:2]), outputs(*theirs[:2]), batch_of())


def test_a_student_like_the_teacher_gives_compress_equal_queues_and_no_loss():
    loss = CompRess(KNOWN, variant="2q", queue=3 * COUNT - 4)
    for step in range(3):
        x_BD = rows(step, COUNT, WIDTH)
        loss(outputs(2 * x_BD), outputs(x_BD), batch_of(step))
    assert torch.allclose(loss.bank.student, loss.bank.teacher, atol=1e-6)
    x_BD = rows(9, COUNT, WIDTH)
    same, other = (
        copy.deepcopy(loss)(outputs(s_BD), outputs(x_BD), batch_of())
        for s_BD in (x_BD, rows(8, COUNT, WIDTH))
    )
    assert float(same) == pytest.approx(0, abs=1e-5)
    assert float(other) > 1


def test_the_student_s_queue_of_compress_holds_what_the_variant_says():
    s_BD, k_BD = rows(1, COUNT, WIDTH), rows(2, COUNT, WIDTH)
    for variant, expected in {"2q": s_BD, "2q_momentum": k_BD}.items():
        loss = CompRess(KNOWN, variant=variant, momentum=0.5)
        assert loss.momentum == (None if variant == "2q" else 0.5)
        loss(outputs(s_BD, momentum=(k_BD,)), outputs(rows(3, COUNT, WIDTH)), batch_of())
        assert torch.equal(loss.bank.student[:COUNT], unit(expected))
    assert CompRess(KNOWN, variant="1q").momentum is None


@pytest.mark.parametrize("name", BY_MOMENTUM)
def test_with_the_moving_average_as_target_a_view_learns_from_the_one_before(name):
    loss = BY_MOMENTUM[name](make_shapes()).train()
    student, teacher = make_outputs(loss, COUNT, 2)
    key_BD = loss.momentum_head(student.momentum[0].embedding_BD)
    queries_BD = loss.queries([student[1]])
    expected = loss.compare(queries_BD, [key_BD], loss.bank.teacher, loss.bank)
    value = loss(student, mapped(teacher, lambda x: x * torch.nan), batch_of())
    assert float(value.detach()) == near(expected)
    assert loss.bank.pushed == COUNT and torch.equal(loss.bank.teacher[:COUNT], unit(key_BD))
    alone = Outputs(student[:1], momentum=student.momentum[:1])
    with pytest.raises(UserError, match="two views of the student; set pairs=same"):
        loss(alone, Outputs(teacher[:1]), batch_of())


@pytest.mark.parametrize("name", ["isd-projection", "ressl"])
def test_the_head_of_the_keys_follows_that_of_the_queries(name):
    loss = BY_MOMENTUM[name](KNOWN)
    loss.momentum = 0.75
    old = [p.clone() for p in loss.momentum_head.parameters()]
    with torch.no_grad():
        for parameter in loss.head.parameters():
            parameter.add_(1)
    loss.after_step(0, 10)
    for before, after in zip(old, loss.momentum_head.parameters(), strict=True):
        assert torch.allclose(after, before + 0.25, atol=1e-6)
        assert not after.requires_grad


@pytest.mark.parametrize("setting", [{"read": "projection"}, {"center_teacher": True}])
@pytest.mark.parametrize("kind", [ISD, ReSSL])
def test_a_target_without_the_teacher_has_no_settings_for_the_teacher(kind, setting):
    known = replace(KNOWN, teacher_projection_dim=4)
    kind(known, **setting)
    with pytest.raises(UserError, match=f"{kind.kind}: target=momentum leaves out the teacher"):
        kind(known, target="momentum", **setting)


def test_an_empty_queue_of_lightly_tells_nothing():
    loss = bare(Lightly(KNOWN))
    assert not loss.bank.teacher.any()
    value = loss.compare(
        rows(1, COUNT, WIDTH), [rows(2, COUNT, WIDTH)], loss.bank.teacher, loss.bank
    )
    assert float(value) == pytest.approx(0, abs=1e-6)


def test_lightly_asks_for_feature_maps_only_for_its_local_term():
    without = replace(make_shapes(), student_maps={}, student_name="a net")
    assert Lightly(without).student_taps == Lightly(make_shapes()).student_taps == ()
    with pytest.raises(
        UserError, match=r"lightly: .*\(a net\) has no feature maps.*local_weight=0"
    ):
        Lightly(without, local_weight=1.0)
    staged = Lightly(make_shapes(), local_weight=1.0, maps=("layer2", ("layer3", "layer4")))
    assert staged.student_taps == ("layer2", "layer3")
    assert staged.teacher_taps == ("layer2", "layer4")


def test_the_local_term_of_lightly_has_its_weight():
    values = []
    for weight in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        loss = Lightly(make_shapes(), local_weight=weight, maps=("layer2",))
        torch.manual_seed(1)
        known = Lightly(make_shapes(), local_weight=1.0, maps=("layer2",))
        student, teacher = make_outputs(known, COUNT, 2)
        values.append(float(loss(student, teacher, batch_of()).detach()))
    assert values[1] > values[0]
    assert values[2] - values[0] == pytest.approx(3 * (values[1] - values[0]), rel=1e-4)


def test_tokens_alike_in_the_same_way_have_no_local_loss():
    x_BNC = rows(1, COUNT, 9, WIDTH)
    rotation_CC = torch.linalg.qr(rows(2, WIDTH, WIDTH))[0]
    assert float(token_divergence(2 * x_BNC @ rotation_CC, x_BNC, 0.07)) < 1e-6
    assert float(token_divergence(x_BNC.roll(1, 0), x_BNC, 0.07)) > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6), st.integers(0, 16))
def test_all_right_rows_and_the_best_wrong_ones_are_kept(count, seed, sixteenths):
    ratio = sixteenths / 16
    cosine_RB = rows(seed, 3 * count, count)
    own_R = torch.arange(count).repeat(3)
    kept_R = kept_rows(cosine_RB, own_R, ratio)
    order_RB = cosine_RB.argsort(1, descending=True)
    rank_R = (order_RB == own_R[:, None]).int().argmax(1)
    wrong = int((rank_R > 0).sum())
    assert kept_R[rank_R == 0].all()
    assert int(kept_R[rank_R > 0].sum()) == int(wrong * ratio)
    if kept_R.any() and not kept_R.all():
        assert rank_R[kept_R].max() <= rank_R[~kept_R].min()


def test_rows_left_out_of_sskd_do_not_count():
    cosine_RB, own_R = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.5]]), torch.tensor([0, 1, 0])
    student_RB = rows(0, 3, 2)
    each_R = divergences(2 * student_RB, 2 * cosine_RB) / 4
    # The third row is right; of the two wrong ones a half is one, the first.
    for ratio, rows_kept in ((0.0, [2]), (0.5, [0, 2]), (1.0, [0, 1, 2])):
        loss = rotation_divergence(student_RB, cosine_RB, own_R, temperature=0.5, ratio=ratio)
        assert float(loss) == near(each_R[rows_kept].mean())
    none = rotation_divergence(student_RB[:2], cosine_RB[:2], own_R[:2], 0.5, ratio=0.0)
    assert float(none) == 0


def test_sskd_pairs_each_rotation_with_its_own_image():
    """A teacher that knows every rotated image gets all rows right, and no row is left out."""
    loss = SSKD(make_shapes(), ratio=0.0)
    student, _ = make_outputs(loss, COUNT, 1)
    t_BD = torch.eye(COUNT, 16)
    teacher = Outputs([Representation(t_BD)], {n: Representation(t_BD) for n in loss.extra_teacher})
    upright, *turned = (
        unit(loss.head(view.embedding_BD)) for view in (*student, *student.extra.values())
    )
    cosines = torch.cat(turned) @ upright.T, t_BD.repeat(3, 1) @ t_BD.T
    expected = 0.25 * divergences(cosines[0] / 0.5, cosines[1] / 0.5).mean()
    assert float(loss(student, teacher, batch_of()).detach()) == near(expected)


def test_dogo_is_the_divergence_of_images_over_their_number():
    views = [unit(rows(seed, COUNT, WIDTH)) for seed in range(4)]
    log_q = (views[0] @ views[1].T / 0.1).log_softmax(1)
    p = (views[2] @ views[3].T / 0.1).softmax(1)
    expected = F.kl_div(log_q, p, reduction="batchmean") / COUNT
    assert float(view_divergence(*views, 0.1)) == near(expected)
    loss = DoGo(KNOWN)
    assert float(loss(outputs(*views[:2]), outputs(*views[2:]), batch_of())) == near(expected)
    with pytest.raises(UserError, match="dogo: two views"):
        loss(outputs(views[0]), outputs(views[1]), batch_of())


def convolutional(width: int) -> Encoder:
    args = {"layers": (1, 1, 0, 0), "channels": (8, width, width, width)}
    args |= {"stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16)


def transformer(width: int) -> Encoder:
    args = {"img_size": 16, "patch_size": 4, "embed_dim": width, "depth": 2, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)


@pytest.mark.parametrize("make_student", [convolutional, transformer])
@pytest.mark.parametrize("make_teacher", [convolutional, transformer])
def test_settings_that_are_no_defaults_train(make_student, make_teacher):
    torch.manual_seed(0)
    student, teacher = make_student(16), make_teacher(24)
    known = shapes(student, teacher, 40)
    losses = {name: make(known) for name, make in BY_MOMENTUM.items() if name != "ressl"}
    losses["lightly"] = Lightly(known, local_weight=1.0, maps="stages")
    losses["compress"] = CompRess(known)
    losses["seed"] = SEED(known, small_views=1)
    distiller = Distiller(student, teacher, losses, dict.fromkeys(losses, LossSettings())).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    for step in range(2):
        views = [torch.rand(COUNT, 3, 16, 16) for _ in range(2)]
        values = distiller(views, batch_of(step))
        assert all(torch.isfinite(value) for value in values.values())
        sum(values.values()).backward()
        optimizer.step()
        distiller.after_step(step, 2)
    heads = losses["isd-projection"].head, losses["isd-projection"].momentum_head
    for trained, moved in zip(*(head.parameters() for head in heads), strict=True):
        assert trained.grad is not None and moved.grad is None
