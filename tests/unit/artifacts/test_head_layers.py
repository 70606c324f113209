"""Layers in projector files other than those of the first heads."""

import pytest
import safetensors.torch
import torch
from torch import nn

from ssdistill.artifacts.heads import LAYERS, UnitLength, pack_head, unpack_head
from ssdistill.errors import UserError


@pytest.mark.parametrize(
    "layer",
    [
        nn.GELU(),
        nn.GELU("tanh"),
        nn.LayerNorm(8, eps=1e-3),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm(8, elementwise_affine=False),
        UnitLength(),
    ],
    ids=repr,
)
def test_a_head_with_such_a_layer_comes_back_bit_by_bit(layer):
    head = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    content, described = pack_head(head)
    again = unpack_head(content, LAYERS.validate_python(described), 6)
    h_BD = torch.randn(4, 6)
    assert repr(again) == repr(head)
    assert torch.equal(again(h_BD), head(h_BD))


def test_unit_length_divides_by_the_length():
    z_BD = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(UnitLength()(z_BD), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_heads_of_the_first_layers_are_described_as_before():
    head = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
    assert pack_head(head)[1] == [
        {"kind": "linear", "in_dim": 6, "out_dim": 8, "bias": False},
        {"kind": "batch_norm", "width": 8, "affine": True, "eps": 1e-5},
        {"kind": "relu"},
    ]


def test_a_layer_norm_of_another_width_is_refused():
    layers = [
        {"kind": "linear", "in_dim": 6, "out_dim": 8, "bias": False},
        {"kind": "layer_norm", "width": 9, "affine": False, "bias": False, "eps": 1e-5},
    ]
    content = safetensors.torch.save({"0.weight": torch.ones(8, 6)})
    with pytest.raises(UserError, match="layers of incompatible widths"):
        unpack_head(content, LAYERS.validate_python(layers), 6)


def test_a_layer_norm_over_maps_cannot_be_saved():
    with pytest.raises(UserError, match=r"cannot save .* LayerNorm"):
        pack_head(nn.Sequential(nn.LayerNorm((2, 3))))
