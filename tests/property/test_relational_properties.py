"""What the losses over relations may and may not depend on."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from synthetic import make_outputs, make_shapes, mapped
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.cc import neighbouring_differences
from ssdistill.losses.dist import relation_distances
from ssdistill.losses.ega import graph_alignment
from ssdistill.losses.gram import gram_difference
from ssdistill.losses.ickd import channel_difference
from ssdistill.losses.kdsvd import RightVectors, singular_vectors, stage_differences
from ssdistill.losses.pkt import affinity_divergence
from ssdistill.losses.rkd import angle_difference, centred_gram, distance_difference
from ssdistill.losses.sp import similarity_difference
from ssdistill.models.representation import Outputs
from ssdistill.registry import LOSSES

KINDS = ("rkd", "sp", "pkt", "cc", "ega", "gram", "ickd", "dist", "kdsvd")
COUNT = 8


def build(kind: str, **settings) -> Loss:
    """The loss between networks of one width, without heads."""
    torch.manual_seed(0)
    loss_of = LOSSES.build(LOSSES.schema(kind)(**settings), make_shapes(16, 16))
    loss_of.head = loss_of.teacher_head = nn.Identity()
    if hasattr(loss_of, "map_pairs"):
        loss_of.heads = nn.ModuleList(nn.Identity() for _ in loss_of.map_pairs)
    return loss_of


def batch_of(count: int = COUNT) -> Batch:
    return Batch(torch.zeros(count, 1, 1, 3, dtype=torch.uint8), torch.arange(count), 0, 0, 1)


def sides(loss_of: Loss) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    student, teacher = make_outputs(loss_of, COUNT, 1)
    return mapped(student, Tensor.detach), teacher


def value(loss_of: Loss, student: Outputs, teacher: Outputs) -> float:
    return float(loss_of(student, teacher, batch_of(len(student[0].embedding_BD))).detach())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cc"])
def test_the_order_of_the_batch_does_not_matter(kind):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    order_B = torch.randperm(COUNT)
    shuffled = (mapped(side, lambda x: x[order_B]) for side in (student, teacher))
    assert value(loss_of, *shuffled) == pytest.approx(value(loss_of, student, teacher), rel=1e-5)
    unequal = value(loss_of, mapped(student, lambda x: x[order_B]), teacher)
    assert unequal != pytest.approx(value(loss_of, student, teacher), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_compared_one_by_one_and_averaged(kind):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    other = mapped(student, torch.sin)
    expected = (value(loss_of, student, teacher) + value(loss_of, other, teacher)) / 2
    both = Outputs([*student, *other]), Outputs([*teacher, *teacher])
    assert value(loss_of, *both) == pytest.approx(expected, rel=1e-5)


def test_cc_depends_on_who_is_next_to_whom():
    loss_of = build("cc")
    student, teacher = sides(loss_of)
    expected = value(loss_of, student, teacher)
    backwards = (mapped(side, lambda x: x.flip(0)) for side in (student, teacher))
    assert value(loss_of, *backwards) == pytest.approx(expected, rel=1e-5)
    order_B = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    shuffled = (mapped(side, lambda x: x[order_B]) for side in (student, teacher))
    assert value(loss_of, *shuffled) != pytest.approx(expected, rel=1e-3)


def factor(x: Tensor, *axes: int) -> Tensor:
    """Random factors around 1, different along ``axes`` alone."""
    generator = torch.Generator().manual_seed(5)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return torch.rand(shape, generator=generator) + 0.5


UNSEEN = {
    "rkd": lambda x: 3 * x + factor(x, 1),
    "sp": lambda x: 3 * x,
    "pkt": lambda x: factor(x, 0) * x,
    "ega": lambda x: factor(x, 0) * x + factor(x, 0),
    "gram": lambda x: x * factor(x, 0, 2, 3) if x.ndim == 4 else x,
    "ickd": lambda x: factor(x, 0) * x,
    "dist": lambda x: x + factor(x, 0),
    "kdsvd": lambda x: factor(x, 0) * x,
}
"""Changes that a loss does not see: of scale, of origin, of every image or position."""


@pytest.mark.parametrize("kind", UNSEEN)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_a_relation_does_not_see(kind, side):
    loss_of = build(kind)
    both = dict(zip(("student", "teacher"), sides(loss_of), strict=True))
    expected = value(loss_of, **both)
    both[side] = mapped(both[side], UNSEEN[kind])
    assert value(loss_of, **both) == pytest.approx(expected, rel=2e-4)


REPEATED = {"sp": 1 / 2, "pkt": 1 / 2, "ickd": 1 / 2, "dist": 1, "gram": 1, "kdsvd": 1}
"""What the loss is multiplied by when every image occurs twice."""


@pytest.mark.parametrize("kind", REPEATED)
def test_how_a_loss_grows_with_the_batch(kind):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    twice = (mapped(side, lambda x: torch.cat([x, x])) for side in (student, teacher))
    expected = REPEATED[kind] * value(loss_of, student, teacher)
    assert value(loss_of, *twice) == pytest.approx(expected, rel=1e-4)


def test_ega_is_neither_squared_nor_averaged():
    loss_of = build("ega", node_weight=0.0)
    student, teacher = sides(loss_of)
    twice = (mapped(side, lambda x: torch.cat([x, x])) for side in (student, teacher))
    expected = 2 * value(loss_of, student, teacher)
    assert value(loss_of, *twice) == pytest.approx(expected, rel=1e-4)


def vector_pair(count: int = COUNT, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(count, 12, dtype=dtype), torch.randn(count, 12, dtype=dtype)


def map_pair(dtype: torch.dtype = torch.float64, side: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    shape = (COUNT, 6, side, side)
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


def token_pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return tuple(x.flatten(2).mT for x in map_pair(dtype))


def distance_and_angle(s_BD: Tensor, t_BD: Tensor, chunk: int) -> Tensor:
    """The two terms of RKD."""
    grams = centred_gram(s_BD), centred_gram(t_BD)
    return torch.stack([distance_difference(*grams), angle_difference(*grams, chunk)])


PURE = {
    "rkd": (vector_pair, lambda s, t: distance_and_angle(s, t, 3)),
    "sp": (vector_pair, similarity_difference),
    "pkt": (vector_pair, affinity_divergence),
    "cc": (vector_pair, neighbouring_differences),
    "ega": (vector_pair, lambda s, t: torch.stack(graph_alignment(s, t))),
    "gram": (token_pair, lambda s, t: gram_difference(s, t, True)),
    "ickd": (map_pair, channel_difference),
    "dist": (vector_pair, lambda s, t: torch.stack(relation_distances(s, t, 2.0))),
    "kdsvd": (map_pair, lambda s, t: stage_differences([(s, t), (t.flip(0), s)], 2, True)[0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_as_good_as_float64(kind):
    pair, function = PURE[kind]
    exact = function(*pair())
    assert exact.dtype == torch.float64
    assert torch.allclose(function(*(x.float() for x in pair())).double(), exact, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["zero", "one image repeated", "like the teacher"])
def test_degenerate_outputs_give_finite_gradients(kind, case):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    change = {
        "zero": lambda side: mapped(side, torch.zeros_like),
        "one image repeated": lambda side: mapped(side, lambda x: x[:1].expand_as(x).clone()),
        "like the teacher": lambda _: mapped(teacher, torch.clone),
    }[case]
    student = mapped(change(student), Tensor.requires_grad_)
    loss = loss_of(student, teacher, batch_of())
    loss.backward()
    assert torch.isfinite(loss)
    leaves = [student[0].embedding_BD, *student[0].maps.values()]
    gradients = [x.grad for x in leaves if x.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_is_no_error(kind):
    loss_of = build(kind)
    student, teacher = (mapped(side, lambda x: x[:1]) for side in sides(loss_of))
    assert np.isfinite(value(loss_of, student, teacher))


def test_pkt_is_the_divergence_of_cosine_kernels():
    s_BD, t_BD = (x.numpy() for x in vector_pair())

    def kernel(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (1 + x @ x.T) / 2

    divergence_B = entropy(kernel(t_BD), kernel(s_BD), axis=1)
    ours = float(affinity_divergence(*vector_pair()))
    assert ours == pytest.approx(divergence_B.sum() / COUNT**2, rel=1e-5)


def test_ega_compares_correlation_matrices():
    s_BD, t_BD = vector_pair()
    all_NN = np.corrcoef(np.concatenate([t_BD.numpy(), s_BD.numpy()]))
    within_t, across = all_NN[:COUNT, :COUNT], all_NN[:COUNT, COUNT:]
    node = np.linalg.norm(across - np.eye(COUNT))
    edge = np.linalg.norm(within_t - all_NN[COUNT:, COUNT:])
    assert torch.stack(graph_alignment(s_BD, t_BD)).tolist() == pytest.approx([node, edge])


def test_dist_correlates_rows_and_columns_of_the_softmax():
    tau = 3.0
    s_BD, t_BD = ((x / tau).softmax(1).numpy() for x in vector_pair())

    def distance(a, b):
        return tau**2 * np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])

    expected = [distance(s_BD, t_BD), distance(s_BD.T, t_BD.T)]
    ours = torch.stack(relation_distances(*vector_pair(), tau)).tolist()
    assert ours == pytest.approx(expected)


def all_angles(x_BD: Tensor) -> Tensor:
    difference_BBD = F.normalize(x_BD[None] - x_BD[:, None], dim=2)
    return difference_BBD @ difference_BBD.mT


@pytest.mark.parametrize("chunk", [1, 3, COUNT, 100])
def test_rkd_in_chunks_is_rkd_at_once(chunk):
    s_BD, t_BD = vector_pair()
    whole, chunked = s_BD.clone().requires_grad_(), s_BD.clone().requires_grad_()
    expected = F.smooth_l1_loss(all_angles(whole), all_angles(t_BD))
    _, angle = distance_and_angle(chunked, t_BD, chunk)
    (expected_gradient,) = torch.autograd.grad(expected, whole)
    (gradient,) = torch.autograd.grad(angle, chunked)
    assert torch.allclose(angle, expected, rtol=1e-10)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-8, atol=1e-12)


def test_rkd_keeps_a_far_origin_out_of_its_angles():
    s_BD, t_BD = vector_pair(dtype=torch.float32)
    near = distance_and_angle(s_BD, t_BD, 4)
    far = distance_and_angle(s_BD + 100, t_BD, 4)
    assert torch.allclose(far, near, rtol=1e-4)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are alive, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.sizes:
                    self.sizes[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


def peak_angles(count: int, chunk: int) -> float:
    """Most memory held at once by RKD and its gradient, in units of count^3 float32 numbers."""
    s_BD, t_BD = vector_pair(count, torch.float32)
    s_BD.requires_grad_()
    with LiveMemory() as memory:
        distance_and_angle(s_BD, t_BD, chunk).sum().backward()
    return memory.peak / (4 * count**3)


def test_rkd_never_holds_all_angles():
    assert peak_angles(64, chunk=64) > 4
    assert peak_angles(64, chunk=2) < 0.5


def test_gram_forgives_negative_cosines_where_told_to():
    s_BNC = torch.tensor([[[1.0, 0.0], [-1.0, 0.1]]])
    t_BNC = torch.tensor([[[1.0, 0.0], [-0.1, 1.0]]])
    assert gram_difference(s_BNC, t_BNC, True) == 0
    assert gram_difference(s_BNC, t_BNC, False) > 0.1


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_gram_refuses_maps_of_one_position(side):
    sides = {"student": (4, 2, 2), "teacher": (4, 2, 2)} | {side: (4, 1, 1)}
    maps = {f"{name}_maps": {"a": shape} for name, shape in sides.items()}
    with pytest.raises(UserError, match=f"gram: map 'a' of the {side} .* one position"):
        LOSSES["gram"](Shapes(4, 4, 10, **maps))


def right_vectors(x_BNC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each vector times itself: what does not depend on the sign."""
    vector_BCk, _ = RightVectors.apply(x_BNC, count)
    vt_BkC = torch.linalg.svd(x_BNC, full_matrices=False).Vh[:, :count]
    return vector_BCk.square(), vt_BkC.mT.square()


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("count", [1, 4])
def test_the_gradient_of_singular_vectors_is_that_of_the_svd(shape, count):
    torch.manual_seed(4)
    x_BNC = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = right_vectors(x_BNC, count)
    towards = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad((ours * towards).sum(), x_BNC, retain_graph=True)
    (expected,) = torch.autograd.grad((theirs * towards).sum(), x_BNC)
    assert torch.allclose(ours, theirs)
    assert torch.allclose(gradient, expected, atol=1e-3 * float(expected.abs().max()))


def vector_gradients(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Of two singular vectors, squared: ours, and that of torch's SVD."""
    x_BNC = x_NC[None].clone().requires_grad_()
    ours, theirs = right_vectors(x_BNC, 2)
    torch.manual_seed(0)
    towards = torch.rand_like(ours)
    (gradient,) = torch.autograd.grad((ours * towards).sum(), x_BNC, retain_graph=True)
    return gradient, torch.autograd.grad((theirs * towards).sum(), x_BNC)[0]


@pytest.mark.parametrize("x_NC", [torch.eye(6), torch.zeros(6, 6), torch.ones(6, 6)])
def test_coinciding_singular_values_give_a_finite_gradient(x_NC):
    assert torch.isfinite(vector_gradients(x_NC)[0]).all()


def test_the_svd_itself_gives_none_where_all_singular_values_are_one():
    assert not torch.isfinite(vector_gradients(torch.eye(6))[1]).all()


def test_kdsvd_has_the_published_gradient_within_that_of_a_float32_svd():
    """The published code, run again, differs from its own numbers by up to 2e-5."""
    numbers = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
    ours = [torch.from_numpy(numbers[f"kdsvd/in/s.{i}"]).requires_grad_() for i in range(3)]
    theirs = [torch.from_numpy(numbers[f"kdsvd/in/t.{i}"]) for i in range(3)]
    sum(stage_differences(list(zip(ours, theirs, strict=True)), 1, False)).backward()
    for i, s_BCHW in enumerate(ours):
        expected = torch.from_numpy(numbers[f"kdsvd/out/grad_s.{i}"])
        assert (s_BCHW.grad - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_kdsvd_does_not_mind_which_way_the_student_points():
    loss_of = build("kdsvd", k=2)
    student, teacher = sides(loss_of)
    opposite = value(loss_of, mapped(student, torch.neg), teacher)
    assert opposite == pytest.approx(value(loss_of, student, teacher), rel=1e-5)


def test_kdsvd_weighs_vectors_by_the_teachers_singular_values():
    s_BNC, t_BNC = token_pair()
    value_Bk = torch.linalg.svdvals(t_BNC)[:, :3]
    for vector_BCk in singular_vectors(s_BNC, t_BNC, 3, True):
        assert torch.allclose(vector_BCk.norm(dim=1), value_Bk / value_Bk.norm(dim=1)[:, None])


def test_the_sign_of_a_singular_vector_is_fixed():
    _, t_BNC = token_pair()
    (_, ours), (_, turned) = (singular_vectors(x, x, 3, True) for x in (t_BNC, -t_BNC))
    assert torch.allclose(ours, turned)
    assert (ours.amax(1) >= ours.amin(1).abs()).all()


def test_kdsvd_has_heads_only_where_channels_differ():
    same, different = (
        LOSSES.build(LOSSES.schema("kdsvd")(), make_shapes(dim, 16)) for dim in (16, 12)
    )
    assert not list(same.parameters())
    assert len(list(different.heads.parameters())) == 2 * len(different.map_pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": "last"}, "kdsvd: maps names one stage"),
        ({"maps": ["layer1", "layer4"], "k": 5}, "k=5 is more .* map 'layer4' .* has: 4"),
    ],
)
def test_kdsvd_says_what_it_lacks(settings, message):
    with pytest.raises(UserError, match=message):
        build("kdsvd", **settings)


def test_a_relation_reads_the_projection_only_where_there_is_one():
    loss_of = LOSSES.build(LOSSES.schema("rkd")(read="projection"), make_shapes())
    student, teacher = sides(loss_of)
    other = mapped(teacher, torch.clone)
    other[0].embedding_BD = torch.randn_like(other[0].embedding_BD)
    assert value(loss_of, student, other) == value(loss_of, student, teacher)
    assert loss_of.needs_projection
    with pytest.raises(UserError, match="rkd: the teacher has kept no projection"):
        LOSSES["rkd"](Shapes(4, 4, 10), read="projection")
