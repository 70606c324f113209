"""Cases of the prototype and logit losses."""

from functools import partial

import torch
from reference import SHAPES, Compared, batch_of, case, leaf, number, outputs
from torch import Tensor, nn

from ssdistill.losses.dino import DINO
from ssdistill.losses.dkd import DKD
from ssdistill.losses.kd import KD
from ssdistill.losses.koleo import KoLeo
from ssdistill.models.representation import Outputs, Representation


def shapes_of(num_logits: int):
    """Student and teacher whose embedding and projection are logits already."""
    return SHAPES(num_logits, num_logits, teacher_projection_dim=num_logits)


def teacher_of(*logits: Tensor) -> Outputs:
    return Outputs([Representation(t_BK, t_BK) for t_BK in logits])


@case("dino_ce_sk", autocast=True)
def dino_ce_sk() -> Compared:
    t_VBK, s_VBK = number("dino_ce_sk/in/t"), leaf("dino_ce_sk/in/s")
    build = partial(DINO, shapes_of(20), logits="projection", temperature_warmup=0.0)
    loss, centered = build(), build(targets="centering")
    loss.head = nn.Identity()
    students, teachers = outputs(*s_VBK), teacher_of(*t_VBK)

    def value(pairs: list[tuple[int, int]]) -> Tensor:
        ours = Outputs([students[i] for i, _ in pairs])
        return loss(ours, Outputs([teachers[j] for _, j in pairs]), batch_of())

    everything = [(i, j) for i in range(3) for j in range(2)]
    whole = value(everything)
    yield "loss", whole
    yield "grad_s", torch.autograd.grad(whole, s_VBK)[0]
    yield "loss_ignore_diag", value([(i, j) for i, j in everything if i != j])
    yield "sk", loss.assign(t_VBK.flatten(0, 1), 0.07)
    yield "softmax_center0", centered.assign(t_VBK.flatten(0, 1), 0.07)


def from_logits(name: str, loss: nn.Module) -> Compared:
    loss.head = nn.Identity()
    s_BK = leaf(f"{name}/in/s")
    value = loss(outputs(s_BK), teacher_of(number(f"{name}/in/t")), batch_of())
    yield "loss", value
    yield "grad_s", torch.autograd.grad(value, s_BK)[0]


@case("kd", autocast=True)
def kd() -> Compared:
    yield from from_logits("kd", KD(shapes_of(16), logits="projection"))


class Labeled(DKD):
    """DKD whose target classes are given, as its authors' are."""

    def target_classes(self, t_NK: Tensor) -> Tensor:
        return number("dkd/in/target")


@case("dkd", autocast=True)
def dkd() -> Compared:
    yield from from_logits("dkd", Labeled(shapes_of(10), logits="projection"))


@case("koleo", autocast=True)
def koleo() -> Compared:
    s_BD = leaf("koleo/in/s")
    value = KoLeo(SHAPES(16, 16))(outputs(s_BD), outputs(s_BD.detach()), batch_of())
    yield "loss", value
    yield "grad_s", torch.autograd.grad(value, s_BD)[0]
