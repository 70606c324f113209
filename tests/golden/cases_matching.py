"""Cases of the feature matching losses."""

import torch
from reference import SHAPES, Compared, batch_of, case, grid, leaf, map_outputs, number, outputs
from reference import weights as stored
from torch import Tensor, nn

from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base.matching import Regression, Standardize
from ssdistill.losses.fd import FD
from ssdistill.losses.fitnet import FitNet
from ssdistill.losses.mgd import MGD
from ssdistill.losses.mse import MSE
from ssdistill.losses.simdis import SimDis, multi_target_distance, view_distance
from ssdistill.losses.simreg import SimReg
from ssdistill.losses.srd import SRD
from ssdistill.losses.srrl import SRRL
from ssdistill.losses.theia import Theia
from ssdistill.losses.unic import UNIC, cosine_and_smooth_l1, mean_over_kept_teachers
from ssdistill.models.representation import Outputs, Representation

HALF = 0.5, 0.5


def one_map(student: int, teacher: int, side: int) -> Shapes:
    maps = {
        f"{name}_maps": {"last": (width, side, side)}
        for name, width in (("student", student), ("teacher", teacher))
    }
    return SHAPES(student, teacher, **maps)


def without_heads(loss: Regression) -> Regression:
    loss.heads = nn.ModuleList(nn.Identity() for _ in loss.heads)
    return loss


def without_statistics(loss: Regression) -> Regression:
    """Targets as they are: the reference's arrive standardized."""
    loss.targets = lambda number, views, batch: views
    return loss


def on_maps(loss: Loss, s_BCHW: Tensor, t_BCHW: Tensor, **more: Tensor) -> Tensor:
    return loss(map_outputs(last=s_BCHW), map_outputs(last=t_BCHW), batch_of(), **more)


@case("simreg")
def simreg() -> Compared:
    loss_of = SimReg(SHAPES(16, 24), depth=4)
    loss_of.head.layers.load_state_dict(stored("simreg/in/mlp."))
    s_BD = leaf("simreg/in/s")
    loss = loss_of(outputs(s_BD), outputs(number("simreg/in/t")), batch_of())
    loss.backward()
    yield "loss", loss
    # The flag of the original code that this is named after changes nothing.
    yield "loss_mse_nonorm_flag", loss
    yield "grad_s", s_BD.grad


@case("fitnet", autocast=True)
def fitnet() -> Compared:
    s_BD = leaf("fitnet/in/s")
    loss_of = without_heads(FitNet(one_map(16, 16, 1)))
    s_BCHW, t_BCHW = (x_BD[:, :, None, None] for x_BD in (s_BD, number("fitnet/in/t")))
    loss = on_maps(loss_of, s_BCHW, t_BCHW)
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BD.grad


@case("lightly_v2", autocast=True)
def lightly_v2() -> Compared:
    s_BNC = leaf("lightly_v2/in/s")
    loss_of = without_heads(MSE(one_map(16, 16, 3), read="maps"))
    loss = on_maps(loss_of, grid(s_BNC), grid(number("lightly_v2/in/t")))
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BNC.grad


@case("fd")
def fd() -> Compared:
    s_BNC = leaf("fd/in/s")
    loss_of = FD(one_map(16, 24, 3), beta=2.0)
    decoder = {
        name: x[..., None] if x.ndim == 3 else x for name, x in stored("fd/in/decoder.0.").items()
    }
    loss_of.heads[0].load_state_dict(decoder)
    loss = on_maps(loss_of, grid(s_BNC), grid(number("fd/in/t")))
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BNC.grad


@case("srrl_fm", autocast=True)
def srrl_fm() -> Compared:
    s_BCHW = leaf("srrl_fm/in/s")
    loss = on_maps(without_heads(SRRL(one_map(16, 16, 4))), s_BCHW, number("srrl_fm/in/t"))
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BCHW.grad


@case("mgd")
def mgd() -> Compared:
    s_BCHW = leaf("mgd/in/s")
    loss_of = MGD(one_map(16, 24, 4))
    loss_of.align[0].load_state_dict(stored("mgd/in/mgd.align."))
    loss_of.generate[0].load_state_dict(stored("mgd/in/mgd.generation."))
    weight = 7e-5
    keep = number("mgd/in/mask")
    loss = weight * on_maps(loss_of, s_BCHW, number("mgd/in/t"), keep=keep)
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BCHW.grad


@case("srd_feat", autocast=True)
def srd_feat() -> Compared:
    s_BD = leaf("srd_feat/in/s")
    loss_of = SRD(SHAPES(16, 16), exponent=4.0)
    # The reference's vectors have been through the projector and the batch norms.
    loss_of.head = loss_of.standardize = nn.Identity()
    weight = 2
    loss = weight * loss_of(outputs(s_BD), outputs(number("srd_feat/in/t")), batch_of())
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BD.grad


@case("theia", autocast=True)
def theia() -> Compared:
    s_BNC, t_BNC = leaf("theia/in/s"), number("theia/in/t")

    def loss_with(**weights: float) -> Tensor:
        loss_of = Theia(one_map(16, 16, 3), **weights)
        return on_maps(without_statistics(without_heads(loss_of)), grid(s_BNC), grid(t_BNC))

    loss = loss_with()
    loss.backward()
    yield "loss", loss
    yield "grad_s", s_BNC.grad
    yield "cos", loss_with(cosine_weight=1.0, smooth_l1_weight=0.0)
    yield "l1", loss_with(cosine_weight=0.0, smooth_l1_weight=1.0)
    squared = without_heads(MSE(one_map(16, 16, 3), read="maps"))
    yield "mse", on_maps(squared, grid(s_BNC), grid(t_BNC))


def unic_side(side: str, teacher: str) -> dict[str, Tensor]:
    """Leaves ``cls`` and ``patch`` of the student or the teacher ``a`` or ``b``."""
    return {kind: leaf(f"unic/in/{side}_{teacher}_{kind}") for kind in ("cls", "patch")}


def unic_outputs(side: dict[str, Tensor]) -> Outputs:
    return Outputs([Representation(side["cls"], maps={"last": grid(side["patch"])})])


def unic_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    loss_of = without_statistics(without_heads(UNIC(one_map(16, 16, 3))))
    theirs = {kind: x.detach() for kind, x in teacher.items()}
    return loss_of(unic_outputs(student), unic_outputs(theirs), batch_of())


def unic_per_image(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    cls = [side["cls"][:, :, None, None] for side in (student, teacher)]
    patch = [grid(side["patch"]) for side in (student, teacher)]
    return (cosine_and_smooth_l1(*cls, *HALF) + cosine_and_smooth_l1(*patch, *HALF)) / 2


@case(
    "unic",
    autocast=True,
    left_out={"norm_batch": "the batch's own statistics, which the training code never uses"},
)
def unic() -> Compared:
    sides = {name: (unic_side("s", name), unic_side("t", name)) for name in "ab"}
    loss = (unic_loss(*sides["a"]) + unic_loss(*sides["b"])) / 2
    loss.backward()
    yield "loss_nodrop", loss
    for kind, x in sides["a"][0].items():
        yield f"grad_s_a_{kind}", x.grad
    yield "loss_single_teacher", unic_loss(*sides["a"])
    loss_TB = torch.stack([unic_per_image(*pair) for pair in sides.values()])
    all_TB = torch.ones_like(loss_TB, dtype=torch.bool)
    yield "loss_drop_all_but_max", mean_over_kept_teachers(loss_TB, all_TB)

    standardize = Standardize(16)
    for teacher, momentum, name, number_of in (("a", 1.0, "first", ""), ("b", 0.1, "second", "2")):
        t_BCHW = number(f"unic/in/t_{teacher}_cls")[:, :, None, None]
        yield f"norm_{name}", standardize([t_BCHW], momentum)[0]
        yield f"ema_mean{number_of}", standardize.mean_C.clone()
        yield f"ema_std{number_of}", standardize.std_C.clone()


@case("simdis", autocast=True)
def simdis() -> Compared:
    s1, s2 = leaf("simdis/in/s1"), leaf("simdis/in/s2")
    pairs = {
        name: [number(f"simdis/in/{name}{view}") for view in (1, 2)] for name in ("se", "t", "te")
    }

    # A frozen teacher is its own moving average: here all eight vectors are told apart.
    targets = {"s": [s1.detach(), s2.detach()], "sema": pairs["se"], "t": pairs["t"]}
    targets["tema"] = pairs["te"]
    names = ("s_dv", "sema_sv", "sema_dv", "t_sv", "t_dv", "tema_sv", "tema_dv")
    shares = dict.fromkeys(names, 1)
    loss = multi_target_distance(dict.fromkeys(names, (s1, s2)), targets, shares)
    loss.backward()
    yield "loss_7v", loss
    yield "grad_s1_7v", s1.grad.clone()
    yield "grad_s2_7v", s2.grad.clone()
    yield "pred_feat_loss", view_distance((s1, s2), pairs["t"], different=True)

    loss_of = SimDis(SHAPES(16, 16), targets=2)
    loss_of.projector = loss_of.momentum_projector = nn.Identity()
    loss_of.predictors = nn.ModuleDict({name: nn.Identity() for name in loss_of.weights})
    s1.grad = s2.grad = None
    student = outputs(s1, s2, momentum=tuple(pairs["se"]))
    loss = loss_of(student, outputs(*pairs["te"]), batch_of())
    loss.backward()
    yield "loss_2v", loss
    yield "grad_s1_2v", s1.grad
    yield "grad_s2_2v", s2.grad
