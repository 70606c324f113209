"""Properties of InfoNCE, as a function and as a loss, for arbitrary inputs."""

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import COUNT, KNOWN, WIDTH, batch_of, headless, number, outputs, rows
from torch import Tensor

from ssdistill.losses.base import contrast
from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.disco import DisCo
from ssdistill.losses.infonce import InfoNCE


def plain_info_nce(s_BD: Tensor, t_BD: Tensor, queue_KD: Tensor) -> Tensor:
    s_BD, t_BD = F.normalize(s_BD, dim=1), F.normalize(t_BD, dim=1)
    logits_BK = torch.cat([(s_BD * t_BD).sum(1, keepdim=True), s_BD @ queue_KD.T], 1) / 0.2
    return F.cross_entropy(logits_BK, torch.zeros(len(s_BD), dtype=torch.int64))


@pytest.mark.parametrize("at_once", [1, 100, 2**26])
def test_info_nce_is_cross_entropy_however_many_rows_fit(at_once, monkeypatch):
    monkeypatch.setattr(contrast, "LOGITS_AT_ONCE", at_once)
    s, t, queue = rows("s", "t", "queue")
    expected_s = s.double().requires_grad_()
    s.requires_grad_()
    queue = F.normalize(queue, dim=1)
    expected = plain_info_nce(expected_s, t.double(), queue.double())
    expected.backward()
    found = info_nce(s, t, queue, 0.2)
    queue.zero_()  # the queue may move on before the way back
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(s.grad.double(), expected_s.grad, rtol=0, atol=1e-7)


def test_extreme_similarities_overflow_nowhere():
    s = torch.eye(2, WIDTH).requires_grad_()
    losses = [info_nce(s, sign * s.detach(), -sign * s.detach(), 1e-3) for sign in (1, -1)]
    assert [round(float(loss.detach())) for loss in losses] == [0, 2000]
    sum(losses).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_infonce_is_seed_with_the_published_code_s_sharp_teacher(autocast):
    """SEED at T_t = 1e-4 puts all weight on the image itself."""
    loss_of = headless(InfoNCE(KNOWN, queue=32, temperature=0.2))
    loss_of.bank.teacher.copy_(number("seed/in/queue"))
    for step in range(2):
        s_BD = number(f"seed/in/s{step}").requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(outputs(s_BD), outputs(number(f"seed/in/t{step}")), batch_of())
        loss.backward()
        for name, ours in (("loss", loss.detach()), ("grad_s", s_BD.grad)):
            reference = number(f"seed/out/{name}{step}")
            assert (ours - reference).abs().max() <= 2e-6 * reference.abs().max()
    assert torch.equal(loss_of.bank.teacher, number("seed/out/queue"))


def test_infonce_averages_over_the_pairs_and_takes_each_as_given():
    loss_of = headless(InfoNCE(KNOWN, queue=32))
    s, t = rows("s0", "s1"), rows("t0", "t1")
    queue_KD = loss_of.bank["teacher"]
    loss = loss_of(outputs(*s), outputs(t[1], t[0]), batch_of())
    directions = [info_nce(s[v], t[1 - v], queue_KD, 0.2) for v in range(2)]
    assert float(loss) == pytest.approx(float(sum(directions)) / 2, rel=1e-6)
    assert loss_of.bank.pushed == 2 * COUNT


def test_infonce_is_the_contrastive_term_of_disco():
    s0, s1, k0, k1 = rows("s0", "s1", "k0", "k1")
    infonce = headless(InfoNCE(KNOWN, queue=32))
    disco = headless(DisCo(KNOWN, queue=32, feature_weight=0.0))
    disco.bank.key.copy_(infonce.bank.teacher)
    ours = disco(outputs(s0, s1, momentum=(k0, k1)), outputs(*rows("t0", "t1")), batch_of())
    assert torch.equal(ours, infonce(outputs(s0), outputs(k1), batch_of()))


def test_the_keys_of_a_centered_teacher_are_centered():
    loss_of = headless(InfoNCE(KNOWN, queue=COUNT, center_teacher=True)).train()
    (t,) = rows("t")
    loss_of(outputs(*rows("s")), outputs(t + 5), batch_of())
    expected = F.normalize(t - t.mean(0), dim=1)
    assert torch.allclose(loss_of.bank.teacher, expected, atol=1e-5)
