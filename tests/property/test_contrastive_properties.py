"""What holds for the contrastive losses whatever the numbers."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic import NUM_SAMPLES, make_outputs, make_shapes, mapped
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes, contrast
from ssdistill.losses.bingo import BINGO
from ssdistill.losses.cassle import CaSSLe, contrastive, decorrelative
from ssdistill.losses.contrast import info_nce
from ssdistill.losses.crd import CRD, draw_contrast, scores
from ssdistill.losses.disco import DisCo, squared_distances
from ssdistill.losses.infonce import InfoNCE
from ssdistill.losses.pcd import PCD
from ssdistill.models.representation import Outputs, Representation

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
COUNT, WIDTH = 8, 16
KNOWN = Shapes(WIDTH, WIDTH, num_samples=40)
WITH_COSINES = {
    "infonce": InfoNCE,
    "disco": DisCo,
    "bingo": BINGO,
    "cassle": CaSSLe,
    "cassle-barlow": lambda known: CaSSLe(known, variant="barlow"),
    "pcd": lambda known: PCD(known, hidden_dim=8),
}


def number(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name].copy())


def rows(*names: str, count: int = COUNT) -> list[Tensor]:
    """A random (count, WIDTH) tensor for each name, always the same one for the same name."""
    found = []
    for name in names:
        generator = torch.Generator().manual_seed(int.from_bytes(name.encode()) % 2**63)
        found.append(torch.randn(count, WIDTH, generator=generator))
    return found


def batch_of(index_B: Tensor | None = None, step: int = 0, epoch: int = 20) -> Batch:
    index_B = torch.arange(COUNT) if index_B is None else index_B
    images = torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8)
    return Batch(images, index_B, epoch, step, 40, cutmix_share=0.7)


def outputs(*embeddings: Tensor, momentum: tuple[Tensor, ...] = (), **extra: Tensor) -> Outputs:
    return Outputs(
        [Representation(x_BD) for x_BD in embeddings],
        {name: Representation(x_BD) for name, x_BD in extra.items()},
        [Representation(x_BD) for x_BD in momentum],
    )


def headless(loss: Loss) -> Loss:
    for name in ("head", "key_head"):
        if hasattr(loss, name):
            setattr(loss, name, nn.Identity())
    if hasattr(loss, "heads"):
        loss.heads = nn.ModuleList(nn.Identity() for _ in loss.heads)
    return loss


def inputs(loss: Loss, views: int = 2) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    return make_outputs(loss, COUNT, views)


def value(loss: Loss, student: Outputs, teacher: Outputs) -> float:
    """Of a copy, so that no queue moves."""
    return float(copy.deepcopy(loss)(student, teacher, batch_of()).detach())


@pytest.mark.parametrize("kind", WITH_COSINES)
def test_the_order_of_the_batch_does_not_matter(kind):
    loss = WITH_COSINES[kind](make_shapes())
    student, teacher = inputs(loss)
    order = torch.randperm(COUNT)
    permuted = (mapped(side, lambda x: x[order]) for side in (student, teacher))
    assert value(loss, *permuted) == pytest.approx(value(loss, student, teacher), rel=1e-5)
    assert value(loss, student, mapped(teacher, lambda x: x[order])) != pytest.approx(
        value(loss, student, teacher), rel=1e-3
    )


@pytest.mark.parametrize("scales", [(3, 1), (1, 3)], ids=["student", "teacher"])
@pytest.mark.parametrize("kind", WITH_COSINES)
def test_the_length_of_vectors_does_not_matter(kind, scales):
    loss = headless(WITH_COSINES[kind](make_shapes(WIDTH, WIDTH)))
    sides = inputs(loss)
    scaled = (
        mapped(x, partial(torch.mul, other=scale)) for x, scale in zip(sides, scales, strict=True)
    )
    assert value(loss, *scaled) == pytest.approx(value(loss, *sides), rel=1e-4)


@pytest.mark.parametrize("kind", WITH_COSINES)
def test_vectors_of_zeros_give_no_nan(kind):
    loss = WITH_COSINES[kind](make_shapes())
    student, teacher = inputs(loss)
    loss(student, mapped(teacher, torch.zeros_like), batch_of()).backward()
    for parameter in loss.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda s, t, q: info_nce(s, t, q, 0.2),
        lambda s, t, q: squared_distances(s, t, "mean"),
        lambda s, t, q: contrastive([s, t], [t, q], [(0, 0), (1, 1)], 0.2),
        lambda s, t, q: decorrelative([s], [t], [(0, 0)], 0.005),
    ],
    ids=["info_nce", "squared_distances", "contrastive", "decorrelative"],
)
def test_float64_vectors_give_the_float32_loss(function: Callable[..., Tensor]):
    s, t, queue = rows("s", "t", "queue")
    queue = F.normalize(queue, dim=1)
    double = function(s.double(), t.double(), queue)
    assert double.dtype == torch.float32
    assert torch.equal(double, function(s, t, queue))


def plain_info_nce(s_BD: Tensor, t_BD: Tensor, queue_KD: Tensor) -> Tensor:
    s_BD, t_BD = F.normalize(s_BD, dim=1), F.normalize(t_BD, dim=1)
    logits_BK = torch.cat([(s_BD * t_BD).sum(1, keepdim=True), s_BD @ queue_KD.T], 1) / 0.2
    return F.cross_entropy(logits_BK, torch.zeros(len(s_BD), dtype=torch.int64))


@pytest.mark.parametrize("at_once", [1, 100, 2**26])
def test_info_nce_is_cross_entropy_however_many_rows_fit(at_once, monkeypatch):
    monkeypatch.setattr(contrast, "LOGITS_AT_ONCE", at_once)
    s, t, queue = rows("s", "t", "queue")
    expected_s = s.double().requires_grad_()
    s.requires_grad_()
    queue = F.normalize(queue, dim=1)
    expected = plain_info_nce(expected_s, t.double(), queue.double())
    expected.backward()
    found = info_nce(s, t, queue, 0.2)
    queue.zero_()  # the queue may move on before the way back
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(s.grad.double(), expected_s.grad, rtol=0, atol=1e-7)


def test_extreme_similarities_overflow_nowhere():
    s = torch.eye(2, WIDTH).requires_grad_()
    losses = [info_nce(s, sign * s.detach(), -sign * s.detach(), 1e-3) for sign in (1, -1)]
    assert [round(float(loss.detach())) for loss in losses] == [0, 2000]
    sum(losses).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_infonce_is_seed_with_the_published_code_s_sharp_teacher(autocast):
    """SEED at T_t = 1e-4 puts all weight on the image itself."""
    loss_of = headless(InfoNCE(KNOWN, queue=32, temperature=0.2))
    loss_of.bank.teacher.copy_(number("seed/in/queue"))
    for step in range(2):
        s_BD = number(f"seed/in/s{step}").requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(outputs(s_BD), outputs(number(f"seed/in/t{step}")), batch_of())
        loss.backward()
        for name, ours in (("loss", loss.detach()), ("grad_s", s_BD.grad)):
            reference = number(f"seed/out/{name}{step}")
            assert (ours - reference).abs().max() <= 2e-6 * reference.abs().max()
    assert torch.equal(loss_of.bank.teacher, number("seed/out/queue"))


def test_infonce_averages_over_the_pairs_and_takes_each_as_given():
    loss_of = headless(InfoNCE(KNOWN, queue=32))
    s, t = rows("s0", "s1"), rows("t0", "t1")
    queue_KD = loss_of.bank["teacher"]
    loss = loss_of(outputs(*s), outputs(t[1], t[0]), batch_of())
    directions = [info_nce(s[v], t[1 - v], queue_KD, 0.2) for v in range(2)]
    assert float(loss) == pytest.approx(float(sum(directions)) / 2, rel=1e-6)
    assert loss_of.bank.pushed == 2 * COUNT


def test_infonce_is_the_contrastive_term_of_disco():
    s0, s1, k0, k1 = rows("s0", "s1", "k0", "k1")
    infonce = headless(InfoNCE(KNOWN, queue=32))
    disco = headless(DisCo(KNOWN, queue=32, feature_weight=0.0))
    disco.bank.key.copy_(infonce.bank.teacher)
    ours = disco(outputs(s0, s1, momentum=(k0, k1)), outputs(*rows("t0", "t1")), batch_of())
    assert torch.equal(ours, infonce(outputs(s0), outputs(k1), batch_of()))


@pytest.mark.parametrize("cls", [InfoNCE, BINGO], ids=["infonce", "bingo"])
def test_a_teacher_s_view_that_is_paired_twice_joins_the_queue_once(cls):
    loss_of = headless(cls(KNOWN, queue=32))
    before = loss_of.bank["teacher"]
    t0, t1, neighbour, cutmix, key = rows("t0", "t1", "neighbour", "cutmix", "key")
    shared = Representation(t0)
    teacher = Outputs([shared, Representation(t1), shared], {"neighbour_1": Representation(key)})
    student = outputs(*rows("s0", "s1", "s2"), neighbour_0=neighbour, cutmix=cutmix)
    loss_of(student, teacher, batch_of())
    pushed = F.normalize(torch.cat([t0, t1]), dim=1)
    assert torch.equal(loss_of.bank.teacher, torch.cat([pushed, before[2 * COUNT :]]))


def test_the_keys_of_a_centred_teacher_are_centred():
    loss_of = headless(InfoNCE(KNOWN, queue=COUNT, center_teacher=True)).train()
    (t,) = rows("t")
    loss_of(outputs(*rows("s")), outputs(t + 5), batch_of())
    expected = F.normalize(t - t.mean(0), dim=1)
    assert torch.allclose(loss_of.bank.teacher, expected, atol=1e-5)


def test_the_scores_of_crd_are_float32_under_autocast():
    v_BD, memory_ND = number("crd/in/mem_s")[:8], number("crd/in/mem_t")
    arguments = v_BD, memory_ND, number("crd/in/contrast_idx0"), 0.07
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(*arguments)
    assert found.dtype == torch.float32
    picked_BKD = memory_ND[arguments[2]].double()
    reference = (torch.einsum("bkd,bd->bk", picked_BKD, v_BD.double()) / 0.07).exp()
    assert torch.allclose(found.double(), reference, rtol=1e-5)


def test_crd_never_draws_the_image_itself():
    index_B = torch.arange(40)
    contrast_BK = draw_contrast(index_B, 500, 40, step=3)
    assert torch.equal(contrast_BK[:, 0], index_B)
    assert (contrast_BK[:, 1:] != index_B[:, None]).all()
    assert contrast_BK[0, 1:].unique().tolist() == list(range(1, 40))
    assert contrast_BK[39, 1:].unique().tolist() == list(range(39))
    assert torch.equal(contrast_BK, draw_contrast(index_B, 500, 40, step=3))
    assert not torch.equal(contrast_BK, draw_contrast(index_B, 500, 40, step=4))


def make_crd() -> CRD:
    torch.manual_seed(2)
    return CRD(KNOWN, dim=6, negatives=10)


def test_the_order_of_the_batch_does_not_matter_to_crd():
    loss_of, order = make_crd(), torch.randperm(COUNT)
    (s, t), index_B = rows("s", "t"), torch.arange(COUNT) + 20
    contrast_BK = draw_contrast(index_B, 10, 40, step=0)
    permuted = copy.deepcopy(loss_of)
    expected = loss_of(outputs(s), outputs(t), batch_of(index_B), contrast_BK)
    found = permuted(
        outputs(s[order]), outputs(t[order]), batch_of(index_B[order]), contrast_BK[order]
    )
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(permuted.memory.student, loss_of.memory.student)


def test_crd_scores_and_remembers_a_view_once_however_often_it_is_paired():
    s, t, u = (Representation(x) for x in rows("s", "t", "u"))
    once, twice = make_crd(), make_crd()
    expected = once(Outputs([s]), Outputs([t, u]), batch_of())
    found = twice(Outputs([s, s, s]), Outputs([t, u, t]), batch_of())
    assert torch.equal(found, expected)
    for name, state in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], state), name


def test_crd_remembers_every_view_of_both_sides_after_scoring():
    loss_of = make_crd()
    before = copy.deepcopy(loss_of.memory)
    s, t = rows("s0", "s1"), rows("t0")
    index_B = torch.arange(COUNT) + 5
    loss_of(outputs(*s), outputs(*t), batch_of(index_B))
    for side, views in (("student", s), ("teacher", t)):
        expected = before[side]
        for x_BD in views:
            v_BD = F.normalize(getattr(loss_of, f"embed_{side}")(x_BD), dim=1)
            expected[index_B] = F.normalize(0.5 * expected[index_B] + 0.5 * v_BD, dim=1)
        assert torch.allclose(loss_of.memory[side], expected.detach(), atol=1e-6)


def test_crd_keeps_the_normaliser_of_its_first_batch():
    loss_of = make_crd()
    views = [outputs(x) for x in rows("s", "t")]
    loss_of(*views, batch_of())
    first = loss_of.normaliser.clone()
    loss_of(*(mapped(side, lambda x: 2 * x + 1) for side in views), batch_of(step=1))
    assert (first > 0).all() and torch.equal(loss_of.normaliser, first)


def test_crd_needs_two_images():
    with pytest.raises(UserError, match=r"^crd: .*two training images"):
        CRD(Shapes(4, 4, num_samples=1))


def disco_views() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return tuple(rows(*(f"{side}{view}" for view in range(3))) for side in "stk")


def test_disco_contrasts_each_view_with_the_key_of_the_next_one_and_keeps_those_keys():
    s, t, k = disco_views()
    loss_of = headless(DisCo(KNOWN, queue=32, feature_weight=0.0))
    queue_KD = loss_of.bank["key"]
    loss = loss_of(outputs(*s, momentum=(*k,)), outputs(*t), batch_of())
    expected = sum(info_nce(s[v], k[v + 1], queue_KD, 0.2) for v in range(2)) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    keys = F.normalize(torch.cat(k[1:]), dim=1)
    assert torch.equal(loss_of.bank.key, torch.cat([keys, queue_KD[2 * COUNT :]]))


def test_disco_contrasts_views_and_not_pairs():
    s, t, k = (list(map(Representation, side)) for side in disco_views())
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1)]
    loss_of = headless(DisCo(KNOWN, queue=32, feature_weight=0.0))
    ours = Outputs([s[i] for i, _ in pairs], momentum=[k[i] for i, _ in pairs])
    found = value(loss_of, ours, Outputs([t[j] for _, j in pairs]))
    assert found == value(loss_of, Outputs(s, momentum=k), Outputs(t))


def test_disco_s_mean_is_its_sum_over_images_and_views():
    s, t, k = disco_views()
    inputs = outputs(*s, momentum=(*k,)), outputs(*t)

    def distance(**settings: str | float) -> float:
        torch.manual_seed(0)
        losses = [
            headless(DisCo(KNOWN, queue=32, feature_weight=weight, **settings))
            for weight in (0.0, 2.0)
        ]
        losses[1].load_state_dict(losses[0].state_dict())
        return value(losses[1], *inputs) - value(losses[0], *inputs)

    assert distance(reduction="sum") == pytest.approx(3 * COUNT * distance(), rel=1e-4)


def test_disco_s_key_head_follows_the_student_s_after_the_step_and_never_learns():
    s, t, k = disco_views()
    loss_of = DisCo(KNOWN, queue=32, momentum=0.75)
    before = copy.deepcopy(loss_of.key_head.state_dict())
    with torch.no_grad():
        for parameter in loss_of.head.parameters():
            parameter += 1
    loss_of(outputs(*s, momentum=(*k,)), outputs(*t), batch_of()).backward()
    assert all(p.grad is None and not p.requires_grad for p in loss_of.key_head.parameters())
    for name, state in loss_of.key_head.state_dict().items():
        assert torch.equal(state, before[name])
    keys = F.normalize(loss_of.key_head(torch.cat(k[1:])), dim=1)
    assert torch.allclose(loss_of.bank.key[: 2 * COUNT], keys, atol=1e-6)
    loss_of.after_step(0, 10)
    for name, state in loss_of.key_head.state_dict().items():
        assert torch.allclose(state, before[name] + 0.25)


def test_disco_needs_two_views_of_the_student():
    (x,) = rows("s")
    with pytest.raises(UserError, match=r"^disco: .*pairs"):
        DisCo(KNOWN)(outputs(x, momentum=(x,)), outputs(x), batch_of())


def run_bingo(epoch: int, **settings: int) -> tuple[float, dict[str, float]]:
    """The loss, and each nce(query, key) at the queue it was scored against."""
    torch.manual_seed(3)
    loss_of = headless(BINGO(KNOWN, queue=32, **settings))
    q, p, mixed, k, neighbour = rows("q", "p", "mixed", "k", "neighbour")
    queue_KD = loss_of.bank["teacher"]
    queries, keys = {"q": q, "p": p, "m": mixed}, {"k": k, "k'": neighbour}
    nce = {
        query + key: float(info_nce(queries[query], keys[key], queue_KD, 0.2))
        for query in queries
        for key in keys
    }
    student = outputs(q, neighbour_0=p, cutmix=mixed)
    teacher = outputs(k, neighbour_1=neighbour)
    return float(loss_of(student, teacher, batch_of(epoch=epoch))), nce


@pytest.mark.parametrize(("warmup_epochs", "epoch"), [(0, 0), (3, 3), (11, 11)])
def test_bingo_gathers_the_bag_after_the_warmup(warmup_epochs, epoch):
    found, nce = run_bingo(epoch, warmup_epochs=warmup_epochs)
    bag = (nce["qk"] + nce["qk'"] + nce["pk"] + nce["pk'"]) / 2
    assert found == pytest.approx((bag + 0.7 * nce["mk"] + 0.3 * nce["mk'"]) / 3, rel=1e-6)


@pytest.mark.parametrize(("warmup_epochs", "epoch"), [(1, 0), (3, 2), (11, 10)])
def test_bingo_keeps_image_and_neighbour_apart_during_the_warmup(warmup_epochs, epoch):
    found, nce = run_bingo(epoch, warmup_epochs=warmup_epochs)
    mixture = 0.7 * nce["mk"] + 0.3 * nce["mk'"]
    assert found == pytest.approx((nce["qk"] + nce["pk'"] + mixture) / 3, rel=1e-6)


def test_bingo_of_two_pairs_is_the_mean_of_both():
    loss_of = headless(BINGO(KNOWN, queue=32))
    q, t = rows("q0", "q1"), rows("t0", "t1")
    p, mixed, neighbour = rows("p", "mixed", "neighbour")

    def of(*views: int) -> float:
        student = outputs(*(q[v] for v in views), neighbour_0=p, cutmix=mixed)
        return value(loss_of, student, outputs(*(t[v] for v in views), neighbour_1=neighbour))

    assert of(0, 1) == pytest.approx((of(0) + of(1)) / 2, rel=1e-6)


def test_cassle_is_at_its_best_where_each_finds_its_own():
    p, z = rows("p0", "p1"), rows("z0", "z1")
    pairs = [(0, 0), (1, 1)]
    matched = contrastive(z, z, pairs, 0.05)
    assert matched < 0.5 < contrastive(z, z[::-1], pairs, 0.05)
    forth, back = (float(contrastive(*sides, pairs, 0.2)) for sides in ((p, z), (z, p)))
    assert forth == pytest.approx(back, rel=1e-6)


def test_cassle_does_not_count_a_view_that_is_paired_twice_among_its_own_negatives():
    """As for the small crops of multi-crop training, which share the large one's vector."""
    s, t = (Representation(x) for x in rows("s", "t"))
    loss_of = headless(CaSSLe(KNOWN))
    expected = value(loss_of, Outputs([s]), Outputs([t]))
    assert value(loss_of, Outputs([s, s]), Outputs([t, t])) == pytest.approx(expected, rel=1e-6)
    p, q, z = rows("p", "q", "z")
    logits = F.normalize(torch.cat([p, q]), dim=1) @ F.normalize(z, dim=1).T / 0.2
    own = torch.arange(COUNT)
    forth = F.cross_entropy(logits, own.repeat(2))
    back = (F.cross_entropy(logits.T, own) + F.cross_entropy(logits.T, own + COUNT)) / 2
    shared = Representation(z)
    found = value(loss_of, outputs(p, q), Outputs([shared, shared]))
    assert found == pytest.approx(float(forth + back) / 2, rel=1e-6)


def test_cassle_s_barlow_form_wants_each_dimension_correlated_with_its_own_only():
    white = torch.linalg.qr(rows("w", count=64)[0] - rows("w", count=64)[0].mean(0))[0]
    white = white - white.mean(0)
    assert decorrelative([3 * white + 1], [white], [(0, 0)], 1.0) < 1e-3
    assert decorrelative([-white], [white], [(0, 0)], 0.0) == pytest.approx(4 * WIDTH, rel=1e-2)
    assert decorrelative([white], [white.flip(0), white], [(0, 1)], 1.0) < 1e-3
    mixed = white.roll(1, 1)
    assert decorrelative([mixed], [white], [(0, 0)], 0.5) == pytest.approx(1.5 * WIDTH, rel=1e-2)


def test_cassle_s_predictor_sees_one_view_at_a_time():
    loss_of = CaSSLe(KNOWN, hidden_dim=8)
    s, t = rows("s0", "s1"), rows("t0", "t1")
    p = [loss_of.head(x_BD) for x_BD in s]
    expected = float(contrastive(p, t, [(0, 0), (1, 1)], 0.2).detach())
    assert value(loss_of, outputs(*s), outputs(*t)) == pytest.approx(expected, rel=1e-6)


def make_pcd(side: int = 2, teacher_side: int = 2, queue: int = 32) -> PCD:
    known = Shapes(
        WIDTH,
        WIDTH,
        num_samples=NUM_SAMPLES,
        student_maps={"layer4": (WIDTH, side, side)},
        teacher_maps={"layer4": (WIDTH, teacher_side, teacher_side)},
    )
    return headless(PCD(known, queue=queue))


def map_outputs(*maps: Tensor) -> Outputs:
    return Outputs([Representation(m.mean((2, 3)), maps={"layer4": m}) for m in maps])


def make_maps(count: int, side: int = 2) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(COUNT, WIDTH, side, side) for _ in range(count)]


def test_pcd_compares_the_same_position_and_no_other():
    loss_of = make_pcd()
    s, t = make_maps(2)
    expected = value(loss_of, map_outputs(s), map_outputs(t))
    turned = value(loss_of, map_outputs(s.rot90(1, (2, 3))), map_outputs(t.rot90(1, (2, 3))))
    assert turned == pytest.approx(expected, rel=1e-6)
    assert value(loss_of, map_outputs(s.rot90(1, (2, 3))), map_outputs(t)) != pytest.approx(
        expected, rel=1e-3
    )


def test_pcd_s_queue_holds_whole_images_of_the_last_pair_s_view():
    loss_of = make_pcd(queue=COUNT)
    s0, s1, t0, t1 = make_maps(4)
    loss_of(map_outputs(s0, s1), map_outputs(t1, t0), batch_of())
    assert torch.allclose(loss_of.bank.map_0, F.normalize(t0.mean((2, 3)), dim=1), atol=1e-6)


def test_pcd_brings_the_student_s_map_to_the_teacher_s_grid():
    s, t = make_maps(1, side=4) + make_maps(1, side=2)
    wide, same = make_pcd(side=4), make_pcd()
    wide.bank.load_state_dict(same.bank.state_dict())
    expected = value(same, map_outputs(F.avg_pool2d(s, 2)), map_outputs(t))
    assert value(wide, map_outputs(s), map_outputs(t)) == pytest.approx(expected, rel=1e-6)


def test_pcd_has_a_queue_for_every_pair_of_maps():
    loss_of = headless(PCD(make_shapes(WIDTH, WIDTH), maps="stages", queue=32, hidden_dim=8))
    student, teacher = (side[:1] for side in inputs(loss_of))
    expected = []
    for name, (s, t) in zip(loss_of.bank.names, loss_of.pairs_of(*student, *teacher), strict=True):
        pixels = (x.permute(0, 2, 3, 1).flatten(0, 2) for x in (s, t))
        expected.append(float(info_nce(*pixels, loss_of.bank[name], 0.2).detach()))
    loss = loss_of(student, teacher, batch_of())
    assert len(set(expected)) == 4
    assert float(loss.detach()) == pytest.approx(sum(expected) / 4, rel=1e-6)
    for name, pair in zip(loss_of.bank.names, loss_of.map_pairs, strict=True):
        keys = F.normalize(teacher[0].maps[pair.teacher].mean((2, 3)), dim=1)
        assert torch.allclose(loss_of.bank[name][:COUNT], keys, atol=1e-6)


@pytest.mark.parametrize("cls", [InfoNCE, DisCo, BINGO, CaSSLe])
def test_a_teacher_without_a_projection_is_refused_where_it_is_read(cls):
    with pytest.raises(UserError, match=f"^{cls.kind}: .*projection"):
        cls(KNOWN, read="projection")


@pytest.mark.parametrize("cls", [InfoNCE, DisCo, BINGO, CaSSLe])
def test_the_projection_is_read_where_it_is_asked_for(cls):
    known = make_shapes()
    loss_of = cls(known, read="projection")
    student, teacher = inputs(loss_of)
    expected = value(loss_of, student, teacher)

    def changed(which: str) -> Outputs:
        def other(r: Representation) -> Representation:
            return replace(r, **{which: torch.randn_like(getattr(r, which))})

        return Outputs([other(r) for r in teacher], {n: other(r) for n, r in teacher.extra.items()})

    assert loss_of.needs_projection
    assert value(loss_of, student, changed("embedding_BD")) == expected
    assert value(loss_of, student, changed("projection_BP")) != expected
