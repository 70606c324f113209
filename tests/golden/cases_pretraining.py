"""Cases of the pretraining methods."""

import torch
from reference import Compared, backward, case, leaf, number
from torch import Tensor

from ssdistill.losses.base.sigreg import epps_pulley, sigreg
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.lejepa import LeJEPA

SMALL = EncoderSettings(name="resnet10t", args={"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8)})


def unit_columns(name: str) -> Tensor:
    direction_DM = number(name)
    return direction_DM / direction_DM.norm(dim=0)


def total_of(method: LeJEPA, terms: dict[str, Tensor]) -> Tensor:
    weights = method.weights_at(0, 1)
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def lejepa(form: str) -> LeJEPA:
    return LeJEPA(build_encoder(SMALL, 16), form=form)


@case(
    "sigreg_lejepa",
    autocast=True,
    left_out={"global_step": "directions are drawn by the step of the batch, not counted"},
)
def sigreg_lejepa() -> Compared:
    yield "univariate", epps_pulley(number("sigreg_lejepa/in/x1"))
    z_VND, direction_DM = leaf("sigreg_lejepa/in/z"), unit_columns("sigreg_lejepa/in/A")
    for name, below in (("loss", 0.0), ("loss_clip", 0.2)):
        loss = sigreg(z_VND, direction_DM, below)
        yield name, loss
        z_VND.grad = None
        backward(loss)
        yield f"grad_{name}_z", z_VND.grad


def whole_form(name: str, form: str) -> Compared:
    method, z_VBP = lejepa(form), leaf(f"{name}/in/z")
    terms = method.terms(z_VBP, unit_columns(f"{name}/in/A"))
    loss = total_of(method, terms)
    yield "loss", loss
    yield "inv", terms["invariance"]
    yield "sigreg", terms["sigreg"]
    yield "grad_z", torch.autograd.grad(loss, z_VBP)[0]


@case("lejepa_minimal")
def lejepa_minimal() -> Compared:
    yield from whole_form("lejepa_minimal", "authors")


@case("lejepa_stable_pretraining")
def lejepa_stable_pretraining() -> Compared:
    yield from whole_form("lejepa_stable_pretraining", "stable_pretraining")


@case("lejepa_lightly")
def lejepa_lightly() -> Compared:
    name = "lejepa_lightly"
    views = [leaf(f"{name}/in/z_global"), leaf(f"{name}/in/z_local")]
    direction_DM = unit_columns(f"{name}/in/A")
    for form, output in (("lightly", "loss"), ("lightly_local", "loss_before_pr2023")):
        method = lejepa(form)
        terms = method.terms(torch.cat(views), direction_DM)
        loss = total_of(method, terms)
        yield output, loss
        if form == "lightly":
            yield "inv", terms["invariance"]
            yield "sigreg", terms["sigreg"]
        global_grad, local_grad = torch.autograd.grad(loss, views)
        yield f"grad_{output}_z_global", global_grad
        yield f"grad_{output}_z_local", local_grad
