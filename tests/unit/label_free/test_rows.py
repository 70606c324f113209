"""Standardized rows: kept, or made anew at every request."""

import pytest
import torch

from ssdistill.label_free import rows as rows_module
from ssdistill.label_free.rows import Rows, standardization

KEPT = 2**20


@pytest.fixture
def z_ND():
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("keep", [KEPT, 0], ids=["kept", "made anew"])
@pytest.mark.parametrize("index", [None, [[8, 1, 3, 5, 0, 2, 2]], [[0, 1, 2, 3], [8, 7, 6, 5]]])
def test_rows_and_their_parts_are_standardized_and_end_where_they_end(z_ND, index, keep):
    index_GN = None if index is None else torch.tensor(index)
    rows = Rows(z_ND, *standardization(z_ND), index_GN, keep=keep)
    unit_ND = (z_ND - z_ND.mean(0)) / z_ND.std(0, correction=0)
    expected_GND = unit_ND[None] if index_GN is None else unit_ND[index_GN]
    assert (len(rows), rows.groups, rows.width) == (expected_GND.shape[1], len(expected_GND), 4)
    assert torch.allclose(rows(0, len(rows)), expected_GND)
    part = rows.part(1, 3)
    assert len(part) == 2 and len(rows) == expected_GND.shape[1]
    # A last chunk is requested whole.
    assert torch.allclose(part(0, 1000), expected_GND[:, 1:3])
    assert torch.allclose(part(1, 2), expected_GND[:, 2:3])
    assert torch.allclose(part.part(1, 2)(0, 1000), expected_GND[:, 2:3])


@pytest.mark.parametrize(("keep", "most"), [(2 * 3 * 4 * 8, 3), (2 * 3 * 4 * 8 - 1, 2)])
def test_what_fits_is_kept_and_given_whole(z_ND, monkeypatch, keep, most):
    monkeypatch.setattr(rows_module, "PIECE", 2 * 2 * 4)
    rows = Rows(z_ND, *standardization(z_ND), torch.tensor([[0, 1, 2], [3, 4, 5]]), keep=keep)
    assert rows.most == most


def test_a_feature_without_spread_stays_zero(z_ND):
    z_ND[:, 2] = 7.0
    assert not Rows(z_ND, *standardization(z_ND))(0, 9)[0, :, 2].any()
