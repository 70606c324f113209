"""Cases of losses on class and patch tokens behind the last norm."""

from functools import partial

import torch
from reference import SHAPES, Compared, backward, batch_of, case, grid, leaf, number, outputs
from torch import Tensor

from ssdistill.losses.cospress import CosPress
from ssdistill.losses.gram import Gram, finer_map
from ssdistill.losses.koleo import KoLeo


def cospress(name: str, compared: str) -> Compared:
    maps = {"student_maps": {"final:patches": (10, 2, 3)}}
    maps |= {"teacher_maps": {"final:patches": (14, 2, 3)}}
    loss = CosPress(SHAPES(10, 14, **maps), compared=compared)
    loss.head.load_state_dict(
        {f"{i}.{x}": number(f"{name}/in/head.{i}.{x}") for i in (0, 1) for x in ("weight", "bias")}
    )
    s_BNC = leaf(f"{name}/in/s_tokens")
    terms = loss.terms(s_BNC, number(f"{name}/in/t_tokens"))
    total = torch.stack([*terms.values()]).sum()
    backward(total)
    yield "loss", total
    yield "sne_local", terms["local"]
    yield "sne_global", terms["global"]
    yield "fea", terms["fea"]
    yield "token", terms["token"]
    yield "grad_s_tokens", s_BNC.grad
    yield "grad_head.1.weight", loss.head[1].weight.grad
    yield "grad_head.0.weight", loss.head[0].weight.grad


for compared in ("full", "half"):
    case(f"cospress_{compared}")(partial(cospress, f"cospress_{compared}", compared))


MAPS = {"student_maps": {"layer3": (16, 3, 3)}, "teacher_maps": {"layer3": (16, 3, 3)}}
GRAMS = {
    "img": {"remove_negative": False},
    "batch": {"remove_negative": False, "level": "batch"},
    "img_removeneg": {},
    "img_teacherneg": {"remove_negative": "teacher"},
    "img_nonorm": {"remove_negative": False, "normalize": False},
}


def of_grids(loss: Gram, s_BNC: Tensor, t_BND: Tensor, sides: tuple[int, int]) -> Tensor:
    return loss.compare(*(grid(x, side) for x, side in zip((s_BNC, t_BND), sides, strict=True)))


@case("dinov3_gram")
def dinov3_gram() -> Compared:
    s_BNC, t_BND = leaf("dinov3_gram/in/s"), number("dinov3_gram/in/t")
    for name, settings in GRAMS.items():
        loss = of_grids(Gram(SHAPES(16, 16, **MAPS), **settings), s_BNC, t_BND, (3, 3))
        yield f"loss_{name}", loss
        if name != "img_nonorm":
            yield f"grad_loss_{name}_s", torch.autograd.grad(loss, s_BNC)[0]


@case("dinov3_gram_highres")
def dinov3_gram_highres() -> Compared:
    s_BNC, t_BND = (f(f"dinov3_gram_highres/in/{x}_patch") for f, x in ((leaf, "s"), (number, "t")))
    loss = Gram(SHAPES(16, 16, **MAPS), remove_negative=False, grid="student")
    yield "teacher_resized", finer_map(grid(t_BND, 6), (3, 3)).flatten(2).mT
    value = of_grids(loss, s_BNC, t_BND, (3, 6))
    yield "loss", value
    yield "grad_s_patch", torch.autograd.grad(value, s_BNC)[0]


def koleo(name: str, neighbors: int) -> Compared:
    s_BD = leaf(f"{name}/in/s")
    loss = KoLeo(SHAPES(16, 16), neighbors=neighbors)(outputs(s_BD), outputs(s_BD), batch_of())
    yield "loss", loss
    yield "grad_s", torch.autograd.grad(loss, s_BD)[0]


case("dinov2_koleo")(partial(koleo, "dinov2_koleo", 1))
case("dinov3_koleo_topk")(partial(koleo, "dinov3_koleo_topk", 3))
