import pytest
import torch

from ssdistill.losses.base import assignments
from ssdistill.losses.base.assignments import Assigning, mean_of_all_rows

ROWS_NK = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def means_of(monkeypatch, parts):
    """What each of several processes gets, which hold the parts of the rows."""
    sent = []
    monkeypatch.setattr(assignments, "world_size", lambda: len(parts))
    monkeypatch.setattr(assignments, "mean_over_processes", lambda x: sent.append(x) or x)
    for part in parts:
        mean_of_all_rows(part)
    assert len(sent) == len(parts)  # each takes part, also without rows
    mean = torch.stack(sent).mean(0)
    monkeypatch.setattr(assignments, "mean_over_processes", lambda x: mean)
    return [mean_of_all_rows(part) for part in parts]


@pytest.mark.parametrize("first", [3, 5, 6])
def test_the_center_of_processes_is_that_of_one(monkeypatch, first):
    expected_K = mean_of_all_rows(ROWS_NK)
    assert torch.equal(expected_K, ROWS_NK.mean(0))
    for mean_K in means_of(monkeypatch, [ROWS_NK[:first], ROWS_NK[first:]]):
        assert torch.allclose(mean_K, expected_K, atol=1e-6)


def test_without_any_rows_the_center_stays(monkeypatch):
    assert mean_of_all_rows(ROWS_NK[:0]) is None
    assert means_of(monkeypatch, [ROWS_NK[:0], ROWS_NK[:0]]) == [None, None]
    monkeypatch.undo()
    one = Assigning()
    one.set_assignments("centering", (0.1, 0.1), 0.0, 0.9, 4)
    one.assign(ROWS_NK[:0], 0.1)
    assert one.center_K.abs().sum() == 0
    one.assign(ROWS_NK, 0.1)
    assert torch.allclose(one.center_K, 0.1 * ROWS_NK.mean(0))
    before_K = one.eval().center_K.clone()
    one.assign(2 * ROWS_NK, 0.1)
    assert torch.equal(one.center_K, before_K)
