"""Cases of the losses on distributions of similarities."""

from collections.abc import Iterator

import torch
from reference import SHAPES, Compared, backward, batch_of, case, grid, leaf, number, outputs
from torch import Tensor, nn

from ssdistill.losses.base.similarity import QueueLoss, unit
from ssdistill.losses.compress import CompRess
from ssdistill.losses.dogo import DoGo
from ssdistill.losses.isd import ISD
from ssdistill.losses.lightly import Lightly
from ssdistill.losses.ressl import ReSSL
from ssdistill.losses.seed import SEED
from ssdistill.losses.sskd import kept_rows, rotation_divergence
from ssdistill.models.representation import Outputs, Representation


def bare(loss: QueueLoss, **rows: Tensor) -> QueueLoss:
    """The loss without its heads and with the reference's first queue."""
    loss.head = nn.Identity()
    loss.predictor = nn.Identity()
    for name, rows_KD in rows.items():
        getattr(loss.bank, name).copy_(rows_KD)
    return loss


def steps(loss: QueueLoss, name: str, count: int = 2, keys: bool = False) -> Iterator:
    """Loss and gradient of each step of a case with inputs s<step>, t<step> (and sk<step>)."""
    for step in range(count):
        s_BD, t_BD = leaf(f"{name}/in/s{step}"), number(f"{name}/in/t{step}")
        momentum = (number(f"{name}/in/sk{step}"),) if keys else ()
        value = loss(outputs(s_BD, momentum=momentum), outputs(t_BD), batch_of(step=step))
        backward(value)
        yield f"loss{step}", value
        yield f"grad_s{step}", s_BD.grad


@case("seed", autocast=True)
def seed() -> Compared:
    for temperature, suffix in ((1e-4, ""), (0.01, "_tt0.01")):
        loss = SEED(SHAPES(16, 16), queue=32, temperature_teacher=temperature)
        bare(loss, teacher=number("seed/in/queue"))
        yield from ((f"{name}{suffix}", value) for name, value in steps(loss, "seed"))
    yield "queue", loss.bank.teacher
    yield "ptr", loss.bank.pushed % loss.bank.size


@case("seed_small_patch", autocast=True)
def seed_small_patch() -> Compared:
    settings = {"queue": 32, "temperature_teacher": 1e-4}
    loss = SEED(SHAPES(16, 16), small_views=3, **settings)
    bare(loss, teacher=number("seed_small_patch/in/queue"))
    loss.small_bank.teacher.copy_(number("seed_small_patch/in/small_queue"))
    s_BD, small_s_ND = leaf("seed_small_patch/in/s"), leaf("seed_small_patch/in/small_s")
    t_BD, small_t_ND = number("seed_small_patch/in/t"), number("seed_small_patch/in/small_t")

    # The patches of one image follow one another, and the teacher's vectors have length 1.
    ours, theirs = (x_ND.unflatten(0, (8, 3)).unbind(1) for x_ND in (small_s_ND, small_t_ND))
    first = loss.bank.teacher.clone(), loss.small_bank.teacher.clone()
    value = loss(outputs(s_BD, *ours), outputs(t_BD, *theirs), batch_of())
    backward(value)
    yield "loss", value
    yield "grad_s", s_BD.grad
    yield "grad_small_s", small_s_ND.grad
    yield "queue", loss.bank.teacher
    yield "small_queue", loss.small_bank.teacher

    parts = {"global": (s_BD, t_BD, first[0]), "small": (small_s_ND, small_t_ND, first[1])}
    for name, (s_ND, t_ND, queue_KD) in parts.items():
        alone = bare(SEED(SHAPES(16, 16), **settings), teacher=queue_KD)
        yield f"loss_{name}", alone(outputs(s_ND), outputs(t_ND), batch_of())


def compress_case(name: str, variant: str, student_dim: int = 16) -> Compared:
    loss = CompRess(SHAPES(student_dim, 24), variant=variant, queue=32)
    rows = {side: number(f"{name}/in/mem_{side[0]}") for side in loss.bank.names}
    yield from steps(bare(loss, **rows), name, keys=variant == "2q_momentum")
    for side in loss.bank.names:
        yield f"mem_{side[0]}", getattr(loss.bank, side)


@case("compress_1q", autocast=True)
def compress_1q() -> Compared:
    yield from compress_case("compress_1q", "1q", student_dim=24)


@case("compress_2q", autocast=True)
def compress_2q() -> Compared:
    yield from compress_case("compress_2q", "2q")


@case("compress_2q_momentum", autocast=True)
def compress_2q_momentum() -> Compared:
    yield from compress_case("compress_2q_momentum", "2q_momentum")


@case("isd", autocast=True)
def isd() -> Compared:
    loss = bare(ISD(SHAPES(16, 16), queue=32), teacher=number("isd/in/queue"))
    yield from steps(loss, "isd")
    yield "queue", loss.bank.teacher


@case("isd_plus", autocast=True)
def isd_plus() -> Compared:
    """As published: the second view learns from the moving average's key of the first."""
    settings = {"temperature_student": 0.1, "temperature_teacher": 0.01, "projection_dim": 16}
    loss = ISD(SHAPES(16, 99), target="momentum", queue=32, **settings)
    bare(loss, teacher=number("isd_plus/in/queue"))
    loss.momentum_head = nn.Identity()
    for step in range(2):
        s_BD, k_BD = leaf(f"isd_plus/in/s{step}"), number(f"isd_plus/in/t{step}")
        unread = torch.full((8, 16), torch.nan)
        student = outputs(unread, s_BD, momentum=(k_BD, unread))
        teacher = outputs(torch.full((8, 99), torch.nan), torch.full((8, 99), torch.nan))
        value = loss(student, teacher, batch_of(step=step))
        backward(value)
        yield f"loss{step}", value
        yield f"grad_s{step}", s_BD.grad
    yield "queue", loss.bank.teacher


@case("ressl", autocast=True)
def ressl() -> Compared:
    loss = bare(ReSSL(SHAPES(16, 16), queue=32), teacher=number("ressl/in/queue"))
    q_BD = leaf("ressl/in/q")
    value = loss(outputs(q_BD), outputs(number("ressl/in/k")), batch_of())
    backward(value)
    yield "loss", value
    yield "grad_q", q_BD.grad


@case("lightly_v1", autocast=True)
def lightly_v1() -> Compared:
    loss = bare(Lightly(SHAPES(16, 16), queue=32))
    yield from steps(loss, "lightly_v1", count=3)
    # The reference keeps the newest batch first, and starts from zeros as well.
    yield "queue", loss.bank.teacher.unflatten(0, (4, 8))[[2, 1, 0, 3]].flatten(0, 1)


@case("lightly_v3", autocast=True)
def lightly_v3() -> Compared:
    grids = {"layer3": (16, 3, 3)}
    shapes = SHAPES(16, 16, student_maps=grids, teacher_maps=grids)
    loss = bare(Lightly(shapes, queue=32, local_weight=1.0))
    loss.bank.teacher.copy_(number("lightly_v3/in/queue"))
    loss.local.heads[0] = nn.Identity()
    leaves = leaf("lightly_v3/in/s"), leaf("lightly_v3/in/s_local")

    # The reference's two terms are those of a queue that has seen the batch already.
    keys = loss.keys(outputs(number("lightly_v3/in/t")))
    far = loss.compare(leaves[0], keys, loss.bank.teacher, loss.bank)
    student, teacher = (
        Outputs([Representation(x_BD, maps={"layer3": grid(x_BNC)})])
        for x_BD, x_BNC in (leaves, [number(f"lightly_v3/in/{t}") for t in ("t", "t_local")])
    )
    near = loss.local(student, teacher, batch_of())
    backward(far + near)
    yield "loss_global", far
    yield "loss_local", near
    yield "grad_s", leaves[0].grad
    yield "grad_s_local", leaves[1].grad


@case("sskd_ss")
def sskd_ss() -> Compared:
    s_BD = leaf("sskd_ss/in/s")
    # Rows are image by image: upright, turned by 90, 180 and 270 degrees.
    own_R = torch.arange(4).repeat_interleave(3)
    cosines = []
    for x_BD in (s_BD, number("sskd_ss/in/t")):
        x_BRD = unit(x_BD).unflatten(0, (4, 4))
        cosines.append(x_BRD[:, 1:].flatten(0, 1) @ x_BRD[:, 0].T)
    value = rotation_divergence(*cosines, own_R, temperature=0.5, ratio=0.75)
    backward(value)
    yield "loss", value
    yield "keep", kept_rows(cosines[1], own_R, 0.75).nonzero()
    yield "grad_s", s_BD.grad


@case("dogo_kl", autocast=True)
def dogo_kl() -> Compared:
    sides = {side: [leaf(f"dogo_kl/in/{v}{side}") for v in "xy"] for side in "st"}
    for name, (ours, theirs) in {"s": "st", "t": "ts"}.items():
        width = sides[ours][0].shape[1], sides[theirs][0].shape[1]
        teacher = [x_BD.detach() for x_BD in sides[theirs]]
        value = DoGo(SHAPES(*width))(outputs(*sides[ours]), outputs(*teacher), batch_of())
        backward(value)
        yield f"loss_{name}", value
    for view, x_BD in zip("xy", sides["s"], strict=True):
        yield f"grad_{view}s", x_BD.grad
