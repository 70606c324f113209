"""Cases of the losses on intermediate maps: attention transfer, activation boundaries, …."""

from collections.abc import Iterator

import torch
from reference import SHAPES, Compared, backward, batch_of, case, leaf, map_outputs, number, weights
from torch import Tensor, nn

from ssdistill.losses.ab import AB
from ssdistill.losses.at import AT
from ssdistill.losses.attndistill import AttnDistill
from ssdistill.losses.base.stage_maps import StageLoss
from ssdistill.losses.fsp import FSP
from ssdistill.losses.ft import FT
from ssdistill.losses.nst import NST
from ssdistill.losses.ofd import OFD
from ssdistill.losses.reviewkd import ReviewKD
from ssdistill.losses.vid import VID
from ssdistill.models.representation import Outputs, Representation


def leaves(case: str, count: int) -> list[Tensor]:
    return [leaf(f"{case}/in/s.{k}") for k in range(count)]


def loss_of(
    cls: type[StageLoss], s: list[Tensor], t: list[Tensor], prefix: str = "", **settings
) -> tuple[StageLoss, Outputs, Outputs]:
    """A loss over maps called 0, 1, … and what it is called with."""
    ours, theirs = ({f"{prefix}{k}": x for k, x in enumerate(maps)} for maps in (s, t))
    shapes = SHAPES(
        s[-1].shape[1],
        t[-1].shape[1],
        student_maps={name: tuple(x.shape[1:]) for name, x in ours.items()},
        teacher_maps={name: tuple(x.shape[1:]) for name, x in theirs.items()},
        teacher_norms={str(k): (torch.zeros(1), torch.ones(1)) for k in range(len(t))},
    )
    return cls(shapes, **settings), map_outputs(**ours), map_outputs(**theirs)


def each_stage_alone(
    cls: type[StageLoss], case: str, count: int, **settings
) -> Iterator[tuple[str, Tensor]]:
    """Loss and gradient of every pair of maps, one at a time."""
    for k, s in enumerate(leaves(case, count)):
        loss, ours, theirs = loss_of(cls, [s], [number(f"{case}/in/t.{k}")], **settings)
        value = loss(ours, theirs, batch_of())
        backward(value)
        yield f"loss.{k}", value
        yield f"grad_s.{k}", s.grad


@case("at", autocast=True)
def at() -> Compared:
    yield from each_stage_alone(AT, "at", 3)


@case("nst", autocast=True)
def nst() -> Compared:
    yield from each_stage_alone(NST, "nst", 3)


@case("vid")
def vid() -> Compared:
    s = leaf("vid/in/s")
    loss, ours, theirs = loss_of(VID, [s], [number("vid/in/t")])
    loss.guesses[0].load_state_dict(weights("vid/in/mod."))
    value = loss(ours, theirs, batch_of())
    backward(value)
    yield "loss", value
    yield "grad_s", s.grad


@case("ft_factor", autocast=True)
def ft_factor() -> Compared:
    s = leaf("ft_factor/in/s")
    loss, ours, theirs = loss_of(FT, [s], [number("ft_factor/in/t")])
    factors = loss.factors[0]
    factors.paraphraser = factors.back = factors.translator = nn.Identity()
    value = loss(ours, theirs, batch_of())
    backward(value)
    yield "loss", value
    yield "grad_s", s.grad


@case("fsp", autocast=True)
def fsp() -> Compared:
    s = leaves("fsp", 2)
    loss, ours, theirs = loss_of(FSP, s, [number(f"fsp/in/t.{k}") for k in range(2)])
    value = loss(ours, theirs, batch_of())
    backward(value)
    yield "loss.0", value
    for k in range(2):
        yield f"grad_s.{k}", s[k].grad


@case("ab", autocast=True)
def ab() -> Compared:
    s = leaves("ab", 2)
    t = [number(f"ab/in/t.{k}") for k in range(2)]
    loss, ours, theirs = loss_of(AB, s, t, "before_relu:")
    for k, pair in enumerate(loss.pairs_of(ours[0], theirs[0])):
        value = loss.pair_loss(k, *pair)
        backward(value)
        yield f"loss.{k}", value
        yield f"grad_s.{k}", s[k].grad


@case("ofd", autocast=True)
def ofd() -> Compared:
    s = leaf("ofd/in/s")
    loss, ours, theirs = loss_of(OFD, [s], [number("ofd/in/t")], "before_relu:")
    stage = loss.stages[0]
    stage.connector, stage.margin_C = nn.Identity(), number("ofd/in/margin").flatten()
    value = loss(ours, theirs, batch_of())
    backward(value)
    yield "loss", value
    yield "grad_s", s.grad


class Unreviewed(nn.Module):
    def forward(self, maps: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        return maps


@case("reviewkd_hcl", autocast=True)
def reviewkd_hcl() -> Compared:
    s = leaves("reviewkd_hcl", 3)
    t = [number(f"reviewkd_hcl/in/t.{k}") for k in range(3)]
    loss, ours, theirs = loss_of(ReviewKD, s[:2], t[:2])
    # The last pair is of one position: the embedding.
    ours[0].embedding_BD, theirs[0].embedding_BD = s[2].flatten(1), t[2].flatten(1)
    loss.review = Unreviewed()
    value = loss(ours, theirs, batch_of())
    backward(value)
    yield "loss", value
    for k in range(3):
        yield f"grad_s.{k}", s[k].grad


def attention_outputs(logits_BHN: Tensor) -> Outputs:
    maps = {"attention:0": logits_BHN[:, :, None]}
    return Outputs([Representation(torch.zeros(len(logits_BHN), 4), maps=maps)])


@case("attndistill", autocast=True)
def attndistill() -> Compared:
    s, t = leaf("attndistill/in/s_logits"), number("attndistill/in/t_logits")
    shapes = SHAPES(
        4,
        4,
        student_maps={"attention:0": (s.shape[1], 1, s.shape[2])},
        teacher_maps={"attention:0": (t.shape[1], 1, t.shape[2])},
    )
    loss = AttnDistill(shapes, attention_weight=1.0, temperature=10.0)
    # The case is the second term alone: equal embeddings make the first one 0.
    loss.head = nn.Identity()
    value = loss(attention_outputs(s), attention_outputs(t), batch_of())
    backward(value)
    yield "loss", value
    yield "grad_s", s.grad
