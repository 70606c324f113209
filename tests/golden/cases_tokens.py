"""Cases of losses on class and patch tokens behind the last norm."""

from functools import partial

import torch
from reference import (
    SHAPES,
    Compared,
    backward,
    batch_of,
    case,
    grid,
    leaf,
    map_outputs,
    number,
    outputs,
    weights,
)
from torch import Tensor

from ssdistill.losses.base.maps import resize_map, tokens
from ssdistill.losses.base.prototypes import sinkhorn
from ssdistill.losses.cospress import CosPress
from ssdistill.losses.gram import Gram, finer_map
from ssdistill.losses.ibot import masked_cross_entropy
from ssdistill.losses.koleo import KoLeo
from ssdistill.losses.lightly import Lightly
from ssdistill.losses.lightly_v2 import LightlyV2
from ssdistill.losses.proteus import Proteus
from ssdistill.models.representation import Outputs, Representation


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


def lightly_v3(name: str, queue: int, order: Tensor) -> Compared:
    """Two steps of lightly-train's third method; of a long batch it keeps the first rows."""
    maps = {"student_maps": {"final:patches": (10, 3, 3)}}
    maps |= {"teacher_maps": {"final:patches": (16, 4, 4)}}
    loss = Lightly(SHAPES(10, 16, **maps), queue=queue, local_weight=1.0, maps="final")
    loss.head.load_state_dict(weights(f"{name}/in/head_global."))
    local = weights(f"{name}/in/head_local.")
    loss.local.heads[0].load_state_dict(
        {"weight": local["weight"][..., None, None], "bias": local["bias"]}
    )
    assert torch.equal(loss.bank.teacher, number(f"{name}/in/queue"))
    for step in range(2):
        s_BCHW, s_BC = leaf(f"{name}/in/s_map{step}"), leaf(f"{name}/in/s_pool{step}")
        t_BCHW, t_BD = (number(f"{name}/in/t_{x}{step}") for x in ("map", "pool"))
        student, teacher = (
            Outputs([Representation(pooled.flatten(1)[order], maps={"final:patches": x[order]})])
            for pooled, x in ((s_BC, s_BCHW), (t_BD, t_BCHW))
        )
        loss.zero_grad()
        value = loss(student, teacher, batch_of(6, step))
        backward(value)
        near = loss.local(student, teacher, batch_of(6, step))
        yield f"loss{step}", value
        yield f"local{step}", near
        yield f"global{step}", value - near
        yield f"grad_loss{step}_s_map{step}", s_BCHW.grad
        yield f"grad_loss{step}_s_pool{step}", s_BC.grad
        yield f"grad_loss{step}_head_global.weight", loss.head.weight.grad
        yield f"grad_loss{step}_head_local.weight", loss.local.heads[0].weight.grad
        if queue < 6:
            kept = loss.bank.teacher[(torch.arange(queue) + loss.bank.pushed) % queue].flip(0)
        else:
            # The reference keeps the newest batch first.
            kept = torch.cat([*reversed(loss.bank.teacher[: 6 * (step + 1)].split(6))])
            kept = torch.cat([kept, loss.bank.teacher[6 * (step + 1) :]])
        yield f"queue{step}", kept


case("lightly_v3_step")(partial(lightly_v3, "lightly_v3_step", 32, torch.arange(6)))
case("lightly_v3_step_small_queue")(
    # The bank keeps the last rows of a long batch, which of a reversed one are the first.
    partial(lightly_v3, "lightly_v3_step_small_queue", 4, torch.arange(6).flip(0))
)


@case("lightly_v2_step")
def lightly_v2() -> Compared:
    name = "lightly_v2_step"
    blocks = {"final:blocks.0": (6, 8, 8), "final:blocks.1": (6, 4, 4)}
    maps = {"student_maps": {"final:patches": (10, 3, 3)}}
    maps |= {"teacher_maps": blocks | {"final:patches": (6, 4, 4)}}
    loss = LightlyV2(SHAPES(10, 6, **maps))
    assert loss.teacher_taps == ("final:blocks.0", "final:patches")
    loss.head[0].load_state_dict(weights(f"{name}/in/head."))
    s_BCHW = leaf(f"{name}/in/s_map")
    t_maps = {tap: number(f"{name}/in/t_block{i}") for i, tap in enumerate(loss.teacher_taps)}
    student, teacher = map_outputs(**{"final:patches": s_BCHW}), map_outputs(**t_maps)
    value = loss(student, teacher, batch_of(4))
    backward(value)
    yield "loss", value
    yield "teacher_tokens", loss.targets([*t_maps.values()])
    s_BDHW = loss.head(s_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    yield "student_tokens", tokens(resize_map(s_BDHW, (4, 4)))
    yield "grad_s_map", s_BCHW.grad
    yield "grad_head.weight", loss.head[0].weight.grad


def dinov3_terms() -> dict[str, Tensor]:
    """The terms of DINOv3's loss, from our losses' parts."""
    name = "dinov3_total"
    leaves = {x: leaf(f"{name}/in/{x}") for x in DINOV3_INPUTS}
    class_sk = sinkhorn(number(f"{name}/in/t_cls"), 0.07).unflatten(0, (2, 4))
    patch_sk = sinkhorn(number(f"{name}/in/t_masked"), 0.07)

    def cross_entropy(student_crops: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
        log_VBK = (student_crops / 0.1).log_softmax(-1)
        return torch.stack([-(class_sk[t] * log_VBK[s]).sum(1).mean() for s, t in pairs]).mean()

    local = cross_entropy(
        leaves["s_local"].unflatten(0, (3, 4)), [(s, t) for s in range(3) for t in range(2)]
    )
    far = cross_entropy(leaves["s_cls"].unflatten(0, (2, 4)), [(0, 1), (1, 0)])
    spread = KoLeo(SHAPES(16, 16))
    crops = leaves["s_cls_pre"].chunk(2)
    koleo = torch.stack([spread(outputs(x), outputs(x), batch_of(4)) for x in crops]).mean()
    log_MK = (leaves["s_masked"] / 0.1).log_softmax(1)
    ibot = masked_cross_entropy(patch_sk, log_MK, number(f"{name}/in/mask"))
    gram = of_grids(
        Gram(SHAPES(16, 16, **MAPS), remove_negative=False),
        leaves["s_patch"],
        number(f"{name}/in/t_patch"),
        (3, 3),
    )
    terms = {"dino_local": local, "dino_global": far, "koleo": koleo, "ibot": ibot, "gram": gram}
    return terms | {"cls_sk": class_sk, "patch_sk": patch_sk} | leaves


DINOV3_INPUTS = "s_cls", "s_local", "s_cls_pre", "s_masked", "s_patch"


@case("dinov3_total")
def dinov3_total() -> Compared:
    found = dinov3_terms()
    for name in ("dino_local", "dino_global", "koleo", "ibot", "gram", "cls_sk", "patch_sk"):
        yield name, found[name]
    # 2 global crops and 3 local ones: the mean over the 2 + 6 pairs of views.
    assigned = (2 * found["dino_global"] + 6 * found["dino_local"]) / 8
    total = assigned + found["ibot"] + 0.1 * 2 * found["koleo"] + 2 * found["gram"]
    yield "loss", total
    backward(total)
    for name in DINOV3_INPUTS:
        yield f"grad_{name}", found[name].grad


@case("proteus")
def proteus() -> Compared:
    name = "proteus"
    maps = {"student_maps": {"final:patches": (10, 3, 3)}}
    maps |= {"teacher_maps": {"final:patches": (14, 3, 3)}}
    loss = Proteus(SHAPES(10, 14, **maps, student_mask_dim=10))
    heads = {"token": loss.token_head, "fea": loss.feature_head, "patch": loss.patch_head}
    for key, head in heads.items():
        head.load_state_dict(weights(f"{name}/in/{key}_head."))
    names = "s_cls", "s_patch", "s_cls_masked", "s_patch_masked"
    leaves = {x: leaf(f"{name}/in/{x}") for x in names}
    teacher = number(f"{name}/in/t_cls"), number(f"{name}/in/t_patch")
    seen, masked, taught = (
        Representation(x_BD, maps={"final:patches": grid(x_BND)})
        for x_BD, x_BND in (
            (leaves["s_cls"], leaves["s_patch"]),
            (leaves["s_cls_masked"], leaves["s_patch_masked"]),
            teacher,
        )
    )
    terms = loss.terms(seen, taught, masked, number(f"{name}/in/mask"), batch_of(4))
    total = torch.stack([*terms.values()]).sum()
    backward(total)
    yield "loss", total
    for ours, theirs in (("token", "token"), ("feature", "fea"), ("patch", "patch")):
        yield f"{theirs}_loss", terms[ours]
    for x in names:
        # The class token of the masked pass is in no term.
        grad = leaves[x].grad
        yield f"grad_{x}", torch.zeros_like(leaves[x]) if grad is None else grad
    for key, head in heads.items():
        yield f"grad_{key}_head.1.weight", head[1].weight.grad
