"""Layers of the heads that losses compare through."""

import pytest
from torch import nn

from ssdistill.models.heads import regressor


def layers_of(head):
    return [
        (type(layer).__name__, *(getattr(layer, n, None) for n in ("in_features", "out_features")))
        if isinstance(layer, nn.Linear)
        else type(layer).__name__
        for layer in head.modules()
        if not list(layer.children()) and not isinstance(layer, nn.Identity)
    ]


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (1, [("Linear", 6, 5)]),
        (2, [("Linear", 6, 12), "BatchNorm1d", "ReLU", ("Linear", 12, 5)]),
        (
            4,
            [
                *(("Linear", 6, 12), "BatchNorm1d", "ReLU", ("Linear", 12, 6)),
                *(("Linear", 6, 12), "BatchNorm1d", "ReLU", ("Linear", 12, 5)),
            ],
        ),
    ],
)
def test_simregs_head_has_as_many_linear_layers_as_its_depth(depth, layers):
    assert layers_of(regressor(6, 5, depth)) == layers
