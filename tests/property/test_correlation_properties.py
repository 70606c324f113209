"""How PKT, EGA, DIST and Gram treat cosines and correlations."""

import numpy as np
import pytest
import torch
from relational_inputs import COUNT, vector_pair
from scipy.stats import entropy

from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.dist import relation_distances
from ssdistill.losses.ega import graph_alignment
from ssdistill.losses.gram import gram_difference
from ssdistill.losses.pkt import affinity_divergence
from ssdistill.settings.registry import LOSSES


def test_pkt_is_the_divergence_of_cosine_kernels():
    s_BD, t_BD = (x.numpy() for x in vector_pair())

    def kernel(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (1 + x @ x.T) / 2

    divergence_B = entropy(kernel(t_BD), kernel(s_BD), axis=1)
    ours = float(affinity_divergence(*vector_pair()))
    assert ours == pytest.approx(divergence_B.sum() / COUNT**2, rel=1e-5)


def test_ega_compares_correlation_matrices():
    s_BD, t_BD = vector_pair()
    all_NN = np.corrcoef(np.concatenate([t_BD.numpy(), s_BD.numpy()]))
    within_t, across = all_NN[:COUNT, :COUNT], all_NN[:COUNT, COUNT:]
    node = np.linalg.norm(across - np.eye(COUNT))
    edge = np.linalg.norm(within_t - all_NN[COUNT:, COUNT:])
    assert torch.stack(graph_alignment(s_BD, t_BD)).tolist() == pytest.approx([node, edge])


def test_dist_correlates_rows_and_columns_of_the_softmax():
    tau = 3.0
    s_BD, t_BD = ((x / tau).softmax(1).numpy() for x in vector_pair())

    def distance(a, b):
        return tau**2 * np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])

    expected = [distance(s_BD, t_BD), distance(s_BD.T, t_BD.T)]
    ours = torch.stack(relation_distances(*vector_pair(), tau)).tolist()
    assert ours == pytest.approx(expected)


def test_gram_forgives_negative_cosines_where_told_to():
    s_BNC = torch.tensor([[[1.0, 0.0], [-1.0, 0.1]]])
    t_BNC = torch.tensor([[[1.0, 0.0], [-0.1, 1.0]]])
    assert gram_difference(s_BNC, t_BNC, True) == 0
    assert gram_difference(s_BNC, t_BNC, False) > 0.1


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_gram_refuses_maps_of_one_position(side):
    sides = {"student": (4, 2, 2), "teacher": (4, 2, 2)} | {side: (4, 1, 1)}
    maps = {f"{name}_maps": {"a": shape} for name, shape in sides.items()}
    with pytest.raises(UserError, match=f"gram: map 'a' of the {side} .* single position"):
        LOSSES["gram"](Shapes(4, 4, 10, **maps))
