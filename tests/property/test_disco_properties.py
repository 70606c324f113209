"""Properties of DisCo, its pairs and its momentum head."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import COUNT, KNOWN, batch_of, headless, outputs, rows, value
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.disco import DisCo
from ssdistill.models.representation import Outputs, Representation


def disco_views() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return tuple(rows(*(f"{side}{view}" for view in range(3))) for side in "stk")


def test_disco_contrasts_each_view_with_the_key_of_the_next_one_and_keeps_those_keys():
    s, t, k = disco_views()
    loss_of = headless(DisCo(KNOWN, queue=32, feature_weight=0.0))
    queue_KD = loss_of.bank["key"]
    loss = loss_of(outputs(*s, momentum=(*k,)), outputs(*t), batch_of())
    expected = sum(info_nce(s[v], k[v + 1], queue_KD, 0.2) for v in range(2)) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    keys = F.normalize(torch.cat(k[1:]), dim=1)
    assert torch.equal(loss_of.bank.key, torch.cat([keys, queue_KD[2 * COUNT :]]))


def test_disco_contrasts_views_and_not_pairs():
    s, t, k = (list(map(Representation, side)) for side in disco_views())
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1)]
    loss_of = headless(DisCo(KNOWN, queue=32, feature_weight=0.0))
    ours = Outputs([s[i] for i, _ in pairs], momentum=[k[i] for i, _ in pairs])
    found = value(loss_of, ours, Outputs([t[j] for _, j in pairs]))
    assert found == value(loss_of, Outputs(s, momentum=k), Outputs(t))


def test_disco_s_mean_is_its_sum_over_images_and_views():
    s, t, k = disco_views()
    inputs = outputs(*s, momentum=(*k,)), outputs(*t)

    def distance(**settings: str | float) -> float:
        torch.manual_seed(0)
        losses = [
            headless(DisCo(KNOWN, queue=32, feature_weight=weight, **settings))
            for weight in (0.0, 2.0)
        ]
        losses[1].load_state_dict(losses[0].state_dict())
        return value(losses[1], *inputs) - value(losses[0], *inputs)

    assert distance(reduction="sum") == pytest.approx(3 * COUNT * distance(), rel=1e-4)


def test_disco_s_key_head_follows_the_student_s_after_the_step_and_never_learns():
    s, t, k = disco_views()
    loss_of = DisCo(KNOWN, queue=32, momentum=0.75)
    before = copy.deepcopy(loss_of.key_head.state_dict())
    with torch.no_grad():
        for parameter in loss_of.head.parameters():
            parameter += 1
    loss_of(outputs(*s, momentum=(*k,)), outputs(*t), batch_of()).backward()
    assert all(p.grad is None and not p.requires_grad for p in loss_of.key_head.parameters())
    for name, state in loss_of.key_head.state_dict().items():
        assert torch.equal(state, before[name])
    keys = F.normalize(loss_of.key_head(torch.cat(k[1:])), dim=1)
    assert torch.allclose(loss_of.bank.key[: 2 * COUNT], keys, atol=1e-6)
    loss_of.after_step(0, 10)
    for name, state in loss_of.key_head.state_dict().items():
        assert torch.allclose(state, before[name] + 0.25)


def test_disco_needs_two_views_of_the_student():
    (x,) = rows("s")
    with pytest.raises(UserError, match=r"^disco: .*pairs"):
        DisCo(KNOWN)(outputs(x, momentum=(x,)), outputs(x), batch_of())
