import pytest
import torch
import torch.nn.functional as F

from ssdistill import distributed as gather
from ssdistill.losses.base.bank import (
    Bank,
    IndexMemory,
    TeacherMean,
    default_queue_size,
    initial_rows,
)


def numbered(first: int, count: int, width: int = 1) -> torch.Tensor:
    return torch.arange(first, first + count).float()[:, None].expand(count, width)


def test_a_bank_overwrites_its_oldest_rows():
    bank = Bank(5, init="zeros", key=1)
    bank.push(key=numbered(1, 3))
    bank.push(key=numbered(4, 3))
    assert bank["key"].flatten().tolist() == [6, 2, 3, 4, 5]
    assert bank.pushed == 6


@pytest.mark.parametrize("counts", [[3, 3, 1, 7], [1] * 9, [8], [20, 2]])
def test_a_bank_holds_the_last_rows_whatever_the_batch_sizes(counts):
    bank = Bank(8, init="zeros", key=2)
    total = 0
    for count in counts:
        bank.push(key=numbered(total + 1, count, 2))
        total += count
    expected = set(range(max(1, total - 7), total + 1))
    assert set(bank["key"][:, 0].tolist()) - {0.0} == expected
    for number in expected:
        assert bank["key"][(number - 1) % 8, 0] == number


def test_rows_pushed_together_stay_aligned():
    bank = Bank(4, teacher=3, student=2)
    for first in (0, 3, 6):
        bank.push(teacher=numbered(first, 3, 3), student=numbered(first, 3, 2))
    assert torch.equal(bank["teacher"][:, 0], bank["student"][:, 0])


@pytest.mark.parametrize(
    "rows",
    [
        {"teacher": torch.ones(2, 3)},
        {"teacher": torch.ones(2, 3), "pupil": torch.ones(2, 2)},
        {"teacher": torch.ones(2, 3), "student": torch.ones(1, 2)},
    ],
)
def test_a_push_that_would_break_the_alignment_is_refused(rows):
    bank = Bank(4, teacher=3, student=2)
    with pytest.raises(ValueError, match="push requires"):
        bank.push(**rows)
    assert bank.pushed == 0


def test_pushing_does_not_disturb_a_pending_backward():
    bank, s_BD = Bank(4, key=3), torch.randn(2, 3, requires_grad=True)
    queue_KD = bank["key"]
    loss = (s_BD @ queue_KD.T).logsumexp(1).sum()
    bank.push(key=torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(loss, s_BD)
    assert torch.allclose(gradient, (s_BD @ queue_KD.T).softmax(1) @ queue_KD)


def test_pushed_rows_carry_no_gradient():
    bank = Bank(4, key=3)
    bank.push(key=torch.randn(2, 3, requires_grad=True))
    assert not bank["key"].requires_grad


def test_a_bank_resumes_from_its_state_dict():
    first, second = Bank(5, key=2), Bank(5, key=2)
    first.push(key=torch.randn(3, 2))
    second.load_state_dict(first.state_dict())
    rows = torch.randn(4, 2)
    first.push(key=rows)
    second.push(key=rows)
    assert torch.equal(first["key"], second["key"])
    assert first.pushed == second.pushed == 7


def test_initial_rows():
    unit, uniform = initial_rows(500, 64, "unit_normal"), initial_rows(500, 64, "uniform")
    assert torch.allclose(unit.norm(dim=1), torch.ones(500))
    assert uniform.abs().max() <= (64 / 3) ** -0.5
    assert uniform.norm(dim=1).mean() == pytest.approx(1, abs=0.02)
    assert initial_rows(3, 2, "zeros").abs().sum() == 0


def test_the_default_queue_is_at_most_half_the_images():
    assert default_queue_size(50_000) == 4096
    assert default_queue_size(1000) == 500
    assert default_queue_size(1) == 1


def test_an_index_memory_moves_only_the_rows_named():
    memory = IndexMemory(6, momentum=0.25, student=3)
    before_ND, rows_BD = memory["student"], F.normalize(torch.randn(2, 3), dim=1)
    memory.write(torch.tensor([4, 1]), student=rows_BD)
    untouched = [0, 2, 3, 5]
    assert torch.equal(memory["student"][untouched], before_ND[untouched])
    expected = F.normalize(0.25 * before_ND[[4, 1]] + 0.75 * rows_BD, dim=1)
    assert torch.allclose(memory["student"][[4, 1]], expected)


@pytest.mark.parametrize("store", [Bank(4, key=2), IndexMemory(4, momentum=0.5, key=2)])
def test_an_unknown_name_is_a_key_error(store):
    with pytest.raises(KeyError):
        store["size"]


def test_the_teacher_mean_averages_all_training_batches():
    center = TeacherMean(4)
    batches = [torch.randn(6, 4) + 3 for _ in range(3)]
    for batch_BD in batches:
        (centered_BD,) = center([batch_BD])
    mean_D = torch.cat(batches).mean(0)
    assert torch.allclose(center.mean_D, mean_D, atol=1e-6)
    assert torch.allclose(centered_BD, batches[-1] - mean_D, atol=1e-6)


def test_the_teacher_mean_counts_all_views_and_stands_still_in_eval_mode():
    center = TeacherMean(2)
    views = [torch.ones(3, 2), torch.full((3, 2), 3.0)]
    assert [v.unique().item() for v in center(views)] == [-1, 1]
    center.eval()
    center([torch.full((3, 2), 100.0)])
    assert center.mean_D.tolist() == [2, 2]


def test_rows_that_are_no_block_of_memory_are_gathered(monkeypatch):
    def all_gather(rows, x_BD):
        assert x_BD.is_contiguous()
        for row_BD in rows:
            row_BD.copy_(x_BD)

    monkeypatch.setattr(gather, "world_size", lambda: 2)
    monkeypatch.setattr(gather.dist, "all_gather", all_gather)
    x_BD = torch.arange(6.0).view(2, 3).T
    assert torch.equal(gather.all_gather_rows(x_BD), torch.cat([x_BD, x_BD]))
