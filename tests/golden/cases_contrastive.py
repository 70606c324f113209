"""Cases of the contrastive losses, and of those that teachers are pretrained with."""

from dataclasses import replace

import torch
from reference import (
    MANIFEST,
    SHAPES,
    Compared,
    backward,
    batch_of,
    case,
    leaf,
    map_outputs,
    number,
    outputs,
)
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.contrast import info_nce, info_nce_each
from ssdistill.losses.bingo import BINGO
from ssdistill.losses.cassle import CaSSLe
from ssdistill.losses.crd import CRD
from ssdistill.losses.disco import DisCo, squared_distances
from ssdistill.losses.pcd import PCD
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder
from ssdistill.models.representation import Outputs
from ssdistill.pretrain.byol import BYOL
from ssdistill.pretrain.simclr import SimCLR


def settings(name: str) -> dict[str, float]:
    return MANIFEST[name]["settings"]


def reference_crd() -> CRD:
    chosen = settings("crd")
    loss_of = CRD(
        Shapes(16, 24, chosen["n_data"]),
        dim=12,
        negatives=chosen["nce_k"],
        temperature=chosen["T"],
        momentum=chosen["m"],
    )
    with torch.no_grad():
        for side, short in (("student", "s"), ("teacher", "t")):
            getattr(loss_of.memory, side).copy_(number(f"crd/in/mem_{short}"))
            embed = getattr(loss_of, f"embed_{side}")
            embed.weight.copy_(number(f"crd/in/embed_{short}.linear.weight"))
            embed.bias.copy_(number(f"crd/in/embed_{short}.linear.bias"))
    return loss_of


@case("crd")
def crd() -> Compared:
    loss_of = reference_crd()
    for step in range(2):
        s_BD, t_BD = leaf(f"crd/in/s{step}"), number(f"crd/in/t{step}")
        batch = batch_of(step=step, index_B=number(f"crd/in/idx{step}"))
        contrast_BK = number(f"crd/in/contrast_idx{step}")
        loss = loss_of(outputs(s_BD), outputs(t_BD), batch, contrast_BK)
        backward(loss)
        yield f"loss{step}", loss
        yield f"grad_s{step}", s_BD.grad
    yield "mem_s", loss_of.memory.student
    yield "mem_t", loss_of.memory.teacher
    yield "Z", loss_of.normaliser


@case("disco", autocast=True)
def disco() -> Compared:
    temperature = settings("disco")["T"]
    loss_of = DisCo(SHAPES(16, 16), queue=32, temperature=temperature, reduction="sum")
    loss_of.head = loss_of.key_head = nn.Identity()
    queue_KD = number("disco/in/queue")
    loss_of.bank.key.copy_(queue_KD)
    s1, s2, k2, t1, t2 = (leaf(f"disco/in/{name}") for name in ("s1", "s2", "k2", "t1", "t2"))
    unused = torch.full_like(k2, float("nan"))
    loss = loss_of(outputs(s1, s2, momentum=(unused, k2)), outputs(t1, t2), batch_of())
    backward(loss)
    yield "loss", loss
    yield "ce", info_nce(s1, k2, queue_KD, temperature)
    yield "mse_q", squared_distances(s1, t1, "sum")
    yield "mse_k", squared_distances(s2, t2, "sum")
    yield "queue", loss_of.bank.key
    yield "grad_s1", s1.grad
    yield "grad_s2", s2.grad


@case("bingo", autocast=True)
def bingo() -> Compared:
    temperature, share = (settings("bingo")[name] for name in ("T", "mix_lam"))
    queue_KD = number("bingo/in/queue")

    def run(epoch: int) -> tuple[BINGO, Tensor, dict[str, Tensor]]:
        loss_of = BINGO(SHAPES(16, 16), queue=32, temperature=temperature)
        loss_of.head = nn.Identity()
        loss_of.bank.teacher.copy_(queue_KD)
        x = {name: leaf(f"bingo/in/{name}") for name in ("q", "p", "mix", "tk", "tkp")}
        student, teacher = outputs(x["q"]), outputs(x["tk"])
        student.extra = {"neighbor_0": outputs(x["p"])[0], "cutmix": outputs(x["mix"])[0]}
        teacher.extra = {"neighbor_1": outputs(x["tkp"])[0]}
        batch = replace(batch_of(), epoch=epoch, cutmix_fraction=share)
        return loss_of, loss_of(student, teacher, batch), x

    loss_of, loss, x = run(epoch=11)
    backward(loss)
    yield "loss", loss
    for name in ("q", "p", "mix"):
        yield f"grad_{name}", x[name].grad
    yield "queue", loss_of.bank.teacher
    image, neighbor = info_nce_each(x["mix"], (x["tk"], x["tkp"]), queue_KD, temperature)
    yield "mix", share * image + (1 - share) * neighbor
    yield "loss_warmup", run(epoch=10)[1]


@case("pcd", autocast=True)
def pcd() -> Compared:
    maps = {"layer4": (16, 3, 3)}
    known = SHAPES(16, 16, student_maps=maps, teacher_maps=maps)
    loss_of = PCD(known, queue=16, temperature=settings("pcd")["T"])
    loss_of.heads[0] = nn.Identity()
    loss_of.bank.map_0.copy_(number("pcd/in/queue"))
    s1, s2 = leaf("pcd/in/s1"), leaf("pcd/in/s2")
    student = Outputs([*map_outputs(layer4=s1), *map_outputs(layer4=s2)])
    teacher = Outputs(
        [*map_outputs(layer4=number("pcd/in/t2")), *map_outputs(layer4=number("pcd/in/t1"))]
    )
    loss = loss_of(student, teacher, batch_of())
    backward(loss)
    yield "loss", loss
    yield "queue", loss_of.bank.map_0
    yield "grad_s1", s1.grad
    yield "grad_s2", s2.grad


def reference_cassle(**chosen: float | str) -> CaSSLe:
    loss_of = CaSSLe(SHAPES(16, 16), **chosen)
    loss_of.head = nn.Identity()
    return loss_of


@case("cassle_contrastive", autocast=True)
def cassle_contrastive() -> Compared:
    name = "cassle_contrastive/in"
    loss_of = reference_cassle(temperature=settings("cassle_contrastive")["T"])
    p1, p2 = leaf(f"{name}/p1"), leaf(f"{name}/p2")
    loss = loss_of(outputs(p1, p2), outputs(number(f"{name}/z1"), number(f"{name}/z2")), batch_of())
    backward(loss)
    yield "loss", loss
    yield "grad_p1", p1.grad
    yield "grad_p2", p2.grad


@case("cassle_barlow", autocast=True)
def cassle_barlow() -> Compared:
    chosen = settings("cassle_barlow")
    loss_of = reference_cassle(variant="barlow", off_diagonal=chosen["lamb"], scale=chosen["scale"])
    p_BD = leaf("cassle_barlow/in/p")
    loss = loss_of(outputs(p_BD), outputs(number("cassle_barlow/in/z")), batch_of())
    backward(loss)
    yield "loss", loss
    yield "grad_p", p_BD.grad


def encoder() -> Encoder:
    """A network to build a method around; the vectors it would make are given."""
    args = {"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args), 16)


@case("ntxent")
def ntxent() -> Compared:
    z_BD = leaf("ntxent/in/z")
    method = SimCLR(encoder(), temperature=settings("ntxent")["T"])
    method.projector = nn.Identity()
    method.embed = lambda views: views
    (loss,) = method(list(z_BD.chunk(2)), batch_of()).values()
    backward(loss)
    yield "loss", loss
    yield "grad_z", z_BD.grad


@case("byol")
def byol() -> Compared:
    p_BD, z_BD = leaf("byol/in/p"), number("byol/in/z")
    method = BYOL(encoder())
    method.projector = method.predictor = method.target[1] = nn.Identity()
    method.embed = lambda views: views
    method.embeddings = lambda target, views: [z_BD, z_BD]
    # One of two equal directions.
    loss = method([p_BD, p_BD], batch_of())["byol"] / 2
    backward(loss)
    yield "loss", loss
    yield "grad_p", p_BD.grad
