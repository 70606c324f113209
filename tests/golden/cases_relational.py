"""Cases of the relational losses: distances, Gram matrices, correlations."""

from reference import SHAPES, Compared, backward, batch_of, case, leaf, map_outputs, number, outputs
from torch import Tensor, nn

from ssdistill.losses import Loss, Shapes
from ssdistill.losses.cc import CC
from ssdistill.losses.dist import DIST
from ssdistill.losses.ega import EGA
from ssdistill.losses.gram import Gram
from ssdistill.losses.ickd import ICKD
from ssdistill.losses.kdsvd import KDSVD
from ssdistill.losses.pkt import PKT
from ssdistill.losses.rkd import RKD
from ssdistill.losses.sp import SP


def on_vectors(loss_of: Loss, name: str) -> Compared:
    s_BD = leaf(f"{name}/in/s")
    loss = loss_of(outputs(s_BD), outputs(number(f"{name}/in/t")), batch_of())
    backward(loss)
    yield "loss", loss
    yield "grad_s", s_BD.grad


def map_shapes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Shapes:
    sides = ({name: tuple(x.shape[1:]) for name, x in {**side}.items()} for side in (ours, theirs))
    student, teacher = sides
    return SHAPES(1, 1, student_maps=student, teacher_maps=teacher)


def stages(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Three maps of the student, collecting gradients, and three of the teacher."""
    return (
        {f"layer{i}": leaf(f"{name}/in/s.{i}") for i in range(3)},
        {f"layer{i}": number(f"{name}/in/t.{i}") for i in range(3)},
    )


@case("rkd", autocast=True)
def rkd() -> Compared:
    yield from on_vectors(RKD(SHAPES(16, 24)), "rkd")


@case("pkt", autocast=True)
def pkt() -> Compared:
    yield from on_vectors(PKT(SHAPES(16, 24)), "pkt")


@case("cc", autocast=True)
def cc() -> Compared:
    loss_of = CC(SHAPES(16, 16))
    # The numbers come from the loss proper, without the maps to a common width.
    loss_of.head = loss_of.teacher_head = nn.Identity()
    yield from on_vectors(loss_of, "cc")


@case("ega", autocast=True)
def ega() -> Compared:
    loss_of = EGA(SHAPES(16, 16))
    loss_of.head = nn.Identity()
    yield from on_vectors(loss_of, "ega")


@case("dist", autocast=True)
def dist() -> Compared:
    loss_of = DIST(SHAPES(10, 10))
    loss_of.head = nn.Identity()
    yield from on_vectors(loss_of, "dist")


@case("sp", autocast=True)
def sp() -> Compared:
    ours, theirs = stages("sp")
    shapes = map_shapes(ours, theirs)
    for i, name in enumerate(ours):
        loss = SP(shapes, maps=(name,))(map_outputs(**ours), map_outputs(**theirs), batch_of())
        backward(loss)
        yield f"loss.{i}", loss
        yield f"grad_s.{i}", ours[name].grad


@case("gram", autocast=True)
def gram() -> Compared:
    s_BNC, t_BND = leaf("gram/in/s"), number("gram/in/t")
    ours, theirs = ({"blocks.1": x.mT.unflatten(2, (3, 3))} for x in (s_BNC, t_BND))
    shapes = map_shapes(ours, theirs)
    for name, keywords in {"loss": {}, "loss_keep_neg": {"remove_negative": False}}.items():
        loss = Gram(shapes, **keywords)(map_outputs(**ours), map_outputs(**theirs), batch_of())
        if name == "loss":
            backward(loss)
        yield name, loss
    yield "grad_s", s_BNC.grad


@case("ickd", autocast=True)
def ickd() -> Compared:
    ours, theirs = {"layer4": leaf("ickd/in/s")}, {"layer4": number("ickd/in/t")}
    loss_of = ICKD(map_shapes(ours, theirs))
    loss_of.heads[0] = nn.Identity()
    loss = loss_of(map_outputs(**ours), map_outputs(**theirs), batch_of())
    backward(loss)
    yield "loss", loss
    yield "grad_s", ours["layer4"].grad


@case(
    "kdsvd",
    autocast=True,
    left_out={
        f"grad_s.{i}": "as accurate as a float32 SVD, 2e-5; in test_kdsvd_properties.py"
        for i in range(3)
    },
)
def kdsvd() -> Compared:
    ours, theirs = stages("kdsvd")
    shapes = map_shapes(ours, theirs)
    for i, names in enumerate((("layer0", "layer1"), ("layer1", "layer2"))):
        loss_of = KDSVD(shapes, maps=names, fix_signs=False)
        yield f"loss.{i}", loss_of(map_outputs(**ours), map_outputs(**theirs), batch_of())
