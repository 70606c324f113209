"""Losses against numbers that their authors' code produced (sources: core_losses.json)."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.crd import CRD, draw_contrast, scores
from ssdistill.losses.infonce import InfoNCE, info_nce
from ssdistill.losses.seed import SEED, similarity_cross_entropy
from ssdistill.losses.simreg import SimReg
from ssdistill.models.representation import Representation

HERE = Path(__file__).parent
NUMBERS = np.load(HERE / "core_losses.npz")
CASES = json.loads((HERE / "core_losses.json").read_text())["cases"]
TOLERANCE = 2e-6
"""Of the largest absolute reference value: gradients here go down to 1e-5."""


def number(name: str) -> Tensor:
    return torch.from_numpy(NUMBERS[name])


def relative_error(ours: Tensor, name: str) -> float:
    reference = number(name).double()
    ours = ours.detach().double().reshape(reference.shape)
    return float((ours - reference).abs().max() / reference.abs().max())


def assert_golden(ours: Tensor, name: str) -> None:
    assert relative_error(ours, name) <= TOLERANCE, name


def student_input(name: str) -> Tensor:
    return number(name).requires_grad_()


def make_batch(index_B: Tensor, step: int) -> Batch:
    return Batch(torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8), index_B, 0, step, 2)


def with_queue(loss: SEED | InfoNCE) -> SEED | InfoNCE:
    """The loss without its head and with the reference's initial queue."""
    loss.head = torch.nn.Identity()
    loss.bank.teacher.copy_(number("seed/in/queue"))
    return loss


SHAPES = partial(Shapes, num_samples=1000)


def run(loss_of: SEED | InfoNCE, name: str, step: int, autocast: bool) -> tuple[Tensor, Tensor]:
    """Loss and the student's gradient at one step of a case with inputs s<step>, t<step>."""
    s_BD, t_BD = student_input(f"{name}/in/s{step}"), number(f"{name}/in/t{step}")
    batch = make_batch(torch.arange(8), step)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = loss_of([Representation(s_BD)], [Representation(t_BD)], batch)
    loss.backward()
    return loss, s_BD.grad


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(
    ("temperature_teacher", "suffix"), [(1e-4, ""), (0.01, "_tt0.01")], ids=["code", "default"]
)
def test_seed_follows_the_reference_for_two_steps(temperature_teacher, suffix, autocast):
    settings = {"queue": 32, "temperature_teacher": temperature_teacher}
    loss_of = with_queue(SEED(SHAPES(16, 16), **settings))
    for step in range(2):
        loss, gradient = run(loss_of, "seed", step, autocast)
        assert_golden(loss, f"seed/out/loss{step}{suffix}")
        assert_golden(gradient, f"seed/out/grad_s{step}{suffix}")
    assert_golden(loss_of.bank.teacher, "seed/out/queue")
    assert loss_of.bank.pushed % 32 == number("seed/out/ptr").item()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_infonce_is_seed_with_the_published_code_s_sharp_teacher(autocast):
    settings = CASES["seed"]["settings"]
    loss_of = with_queue(InfoNCE(SHAPES(16, 16), queue=32, temperature=settings["T_s"]))
    for step in range(2):
        loss, gradient = run(loss_of, "seed", step, autocast)
        assert_golden(loss, f"seed/out/loss{step}")
        assert_golden(gradient, f"seed/out/grad_s{step}")
    assert_golden(loss_of.bank.teacher, "seed/out/queue")


def test_infonce_takes_the_other_view_as_the_positive():
    loss_of = with_queue(InfoNCE(SHAPES(16, 16), queue=32))
    s, t = ([number(f"seed/in/{side}{view}") for view in range(2)] for side in "st")
    queue_KD = loss_of.bank["teacher"]
    loss = loss_of(*([Representation(x) for x in side] for side in (s, t)), None)
    directions = [info_nce(s[v], t[1 - v], queue_KD, 0.2) for v in range(2)]
    assert float(loss) == pytest.approx(float(sum(directions)) / 2, rel=1e-6)
    assert loss_of.bank.pushed == 16


def test_infonce_is_the_contrastive_term_of_disco():
    queue_KD = F.normalize(number("disco/in/queue"), dim=1)
    loss = info_nce(number("disco/in/s1"), number("disco/in/k2"), queue_KD, 0.2)
    assert_golden(loss, "disco/out/ce")


def test_crd_follows_the_reference_for_two_steps():
    settings = CASES["crd"]["settings"]
    loss_of = CRD(
        Shapes(16, 24, settings["n_data"]),
        dim=12,
        negatives=settings["nce_k"],
        temperature=settings["T"],
        momentum=settings["m"],
    )
    with torch.no_grad():
        for side, short in (("student", "s"), ("teacher", "t")):
            getattr(loss_of.memory, side).copy_(number(f"crd/in/mem_{short}"))
            embed = getattr(loss_of, f"embed_{side}")
            embed.weight.copy_(number(f"crd/in/embed_{short}.linear.weight"))
            embed.bias.copy_(number(f"crd/in/embed_{short}.linear.bias"))
    for step in range(2):
        s_BD, t_BD = student_input(f"crd/in/s{step}"), number(f"crd/in/t{step}")
        batch = make_batch(number(f"crd/in/idx{step}"), step)
        contrast_BK = number(f"crd/in/contrast_idx{step}")
        loss = loss_of([Representation(s_BD)], [Representation(t_BD)], batch, contrast_BK)
        loss.backward()
        assert_golden(loss, f"crd/out/loss{step}")
        assert_golden(s_BD.grad, f"crd/out/grad_s{step}")
    assert_golden(loss_of.memory.student, "crd/out/mem_s")
    assert_golden(loss_of.memory.teacher, "crd/out/mem_t")
    assert_golden(loss_of.normaliser, "crd/out/Z")


def test_the_scores_of_crd_are_float32_under_autocast():
    v_BD, memory_ND = number("crd/in/mem_s")[:8], number("crd/in/mem_t")
    arguments = v_BD, memory_ND, number("crd/in/contrast_idx0"), 0.07
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(*arguments)
    assert found.dtype == torch.float32
    picked_BKD = memory_ND[arguments[2]].double()
    reference = (torch.einsum("bkd,bd->bk", picked_BKD, v_BD.double()) / 0.07).exp()
    assert torch.allclose(found.double(), reference, rtol=1e-5)


def test_crd_never_draws_the_image_itself():
    index_B = torch.arange(40)
    contrast_BK = draw_contrast(index_B, 500, 40, step=3)
    assert torch.equal(contrast_BK[:, 0], index_B)
    assert (contrast_BK[:, 1:] != index_B[:, None]).all()
    assert contrast_BK[0, 1:].unique().tolist() == list(range(1, 40))
    assert contrast_BK[39, 1:].unique().tolist() == list(range(39))
    assert torch.equal(contrast_BK, draw_contrast(index_B, 500, 40, step=3))
    assert not torch.equal(contrast_BK, draw_contrast(index_B, 500, 40, step=4))


def test_simreg_follows_the_reference():
    loss_of = SimReg(SHAPES(16, 24), depth=4)
    prefix = "simreg/in/mlp."
    weights = {n[len(prefix) :]: number(n) for n in NUMBERS.files if n.startswith(prefix)}
    loss_of.head.layers.load_state_dict(weights)
    s_BD = student_input("simreg/in/s")
    batch = make_batch(torch.arange(8), 0)
    loss = loss_of([Representation(s_BD)], [Representation(number("simreg/in/t"))], batch)
    loss.backward()
    assert_golden(loss, "simreg/out/loss")
    assert_golden(s_BD.grad, "simreg/out/grad_s")


def test_the_ntxent_used_for_pretraining_follows_the_reference():
    z_BD = student_input("ntxent/in/z")
    loss = NTXentLoss(temperature=CASES["ntxent"]["settings"]["T"])(*z_BD.chunk(2))
    loss.backward()
    assert_golden(loss, "ntxent/out/loss")
    assert_golden(z_BD.grad, "ntxent/out/grad_z")


def test_the_byol_loss_used_for_pretraining_follows_the_reference():
    p_BD = student_input("byol/in/p")
    loss = 2 + 2 * NegativeCosineSimilarity()(p_BD, number("byol/in/z"))
    loss.backward()
    assert_golden(loss, "byol/out/loss")
    assert_golden(p_BD.grad, "byol/out/grad_p")


def test_seed_with_a_soft_teacher_follows_its_equation():
    rng = np.random.default_rng(0)
    s, t, queue = (rng.standard_normal(shape) for shape in ((8, 16), (8, 16), (32, 16)))
    s, t, queue = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t, queue))
    s_logits = np.concatenate([(s * t).sum(1, keepdims=True), s @ queue.T], 1) / 0.2
    t_logits = np.concatenate([np.ones((8, 1)), t @ queue.T], 1) / 0.3
    p = np.exp(t_logits) / np.exp(t_logits).sum(1, keepdims=True)
    log_q = s_logits - np.log(np.exp(s_logits).sum(1, keepdims=True))
    expected = -(p * log_q).sum(1).mean()

    tensors = [torch.from_numpy(x).float() for x in (s, t, queue)]
    assert p[:, 0].max() < 0.6
    assert float(similarity_cross_entropy(*tensors, 0.2, 0.3)) == pytest.approx(expected, rel=2e-6)
