import copy
import io

import pytest
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.factorized import Factorized

GEOMETRIES = {
    "plain": nn.Conv2d(6, 10, 3, padding=1),
    "no bias": nn.Conv2d(6, 10, 3, padding=1, bias=False),
    "strided": nn.Conv2d(6, 10, 3, stride=(2, 1), padding=(1, 0)),
    "dilated": nn.Conv2d(6, 10, 3, padding=(2, 4), dilation=(2, 3)),
    "5 by 3": nn.Conv2d(6, 10, (5, 3), padding=(2, 1)),
    "row": nn.Conv2d(6, 10, (1, 5), stride=(1, 2), padding=(0, 2)),
    "column": nn.Conv2d(6, 10, (5, 1), stride=(2, 3), padding=(2, 0)),
    "pixel": nn.Conv2d(6, 10, 1, stride=2),
    "same": nn.Conv2d(6, 10, 3, padding="same"),
    "reflected": nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"),
    "linear": nn.Linear(6, 10),
    "linear without bias": nn.Linear(6, 10, bias=False),
}
FORMS = ("channel", "spatial", "tucker")


def fill(factorized, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in factorized.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return factorized


def inputs_of(layer):
    torch.manual_seed(1)
    return torch.randn(2, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 9, 12)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_computes_what_one_layer_with_its_composed_weight_computes(geometry, form):
    layer = copy.deepcopy(GEOMETRIES[geometry])
    factorized = fill(Factorized.like(layer, (3, 4), form))
    layer.weight.copy_(factorized.weight)
    if layer.bias is not None:
        layer.bias.copy_(factorized.bias)
    x = inputs_of(layer)
    assert (factorized.bias is None) == (layer.bias is None)
    assert torch.allclose(layer(x), factorized(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("geometry", "form", "kernels"),
    [
        ("plain", "channel", [(3, 6, 3, 3), (10, 3, 1, 1)]),
        ("plain", "spatial", [(3, 6, 3, 1), (10, 3, 1, 3)]),
        ("plain", "tucker", [(3, 6, 1, 1), (4, 3, 3, 3), (10, 4, 1, 1)]),
        ("pixel", "spatial", [(3, 6, 1, 1), (10, 3, 1, 1)]),
        ("pixel", "tucker", [(3, 6, 1, 1), (10, 3, 1, 1)]),
        ("linear", "tucker", [(3, 6), (10, 3)]),
    ],
)
def test_the_kernels_are_those_of_the_form(geometry, form, kernels):
    factorized = Factorized.like(GEOMETRIES[geometry], (3, 4), form)
    assert [tuple(part.weight.shape) for part in factorized] == kernels
    names = ["reduce", "core", "expand"] if len(kernels) == 3 else ["reduce", "expand"]
    assert [name for name, _ in factorized.named_children()] == names
    assert factorized.form == (form if geometry == "plain" else "channel")
    assert factorized.rank == ((3, 4) if len(kernels) == 3 else 3)
    assert (factorized.in_channels, factorized.out_channels) == (6, 10)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_shapes_of_its_tensors_are_enough_to_build_it_again(geometry, form):
    layer = GEOMETRIES[geometry]
    # Wider than the layer of the fresh network, and with a bias that layer may not have.
    wide = type(layer)
    wide = (
        wide(8, 12)
        if wide is nn.Linear
        else wide(
            8,
            12,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            padding_mode=layer.padding_mode,
        )
    )
    factorized = fill(Factorized.like(wide, (3, 4), form))
    state = factorized.state_dict()
    again = Factorized.from_shapes(layer, {key: value.shape for key, value in state.items()})
    again.load_state_dict(state)
    x = inputs_of(layer)
    x = torch.cat([x, x[..., :2] if x.ndim == 3 else x[:, :2]], -1 if x.ndim == 3 else 1)
    assert torch.equal(again(x), factorized(x))


@pytest.mark.parametrize(
    "shapes",
    [
        {"reduce.weight": (3, 6, 3, 3)},
        {"reduce.weight": (3, 6, 5, 5), "expand.weight": (10, 3, 1, 1)},
        {"reduce.weight": (3, 6, 3, 3), "expand.weight": (10, 4, 1, 1)},
        {"reduce.weight": (3, 6), "expand.weight": (10, 3)},
        {"reduce.weight": (3, 6, 3, 3), "expand.weight": (10, 3, 1, 1), "expand.bias": (9,)},
    ],
)
def test_shapes_that_are_no_factorization_are_refused(shapes):
    with pytest.raises(UserError, match="no factorization of Conv2d 6 -> 10 3x3"):
        Factorized.from_shapes(GEOMETRIES["plain"], shapes)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(6, 6, 3, groups=6), "Conv2d 6 -> 6 3x3 in 6 groups cannot be factorized"),
        (nn.BatchNorm2d(6), "BatchNorm2d.*cannot be factorized"),
    ],
)
def test_layers_that_have_no_factorization_are_refused(layer, message):
    with pytest.raises(UserError, match=message):
        Factorized.like(layer, 2, "channel")


def test_building_one_takes_over_the_state_of_the_layer_and_no_random_number():
    layer = nn.Conv2d(6, 10, 3, dtype=torch.float64).requires_grad_(False).eval()
    before = torch.get_rng_state()
    factorized = Factorized.like(layer, 2, "channel")
    assert torch.equal(before, torch.get_rng_state())
    assert not factorized.training and not any(p.requires_grad for p in factorized.parameters())
    assert factorized.reduce.weight.dtype == torch.float64
    on_meta = Factorized.like(copy.deepcopy(layer).to("meta"), 2, "spatial")
    assert on_meta.expand.weight.is_meta


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_it_survives_copies_other_memory_formats_and_export(form, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    factorized = fill(Factorized.like(GEOMETRIES["strided"], (3, 4), form)).eval()
    x = inputs_of(GEOMETRIES["strided"])
    expected = factorized(x)
    assert torch.equal(copy.deepcopy(factorized)(x), expected)
    last = copy.deepcopy(factorized).to(memory_format=torch.channels_last)
    assert torch.allclose(last(x), expected, atol=1e-4)
    exported = torch.export.export(factorized, (x,)).module()
    assert torch.allclose(exported(x), expected, atol=1e-4)
    file = io.BytesIO()
    torch.onnx.export(factorized, (x,), file, dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_the_pruning_graph_sees_through_it():
    torch_pruning = pytest.importorskip("torch_pruning")
    net = nn.Sequential(
        Factorized.like(nn.Conv2d(3, 8, 3), 4, "spatial"),
        nn.ReLU(),
        Factorized.like(nn.Conv2d(8, 6, 3), (4, 5), "tucker"),
    )
    fill(net)
    x = torch.randn(2, 3, 9, 9)
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=x)
    prune = torch_pruning.prune_conv_out_channels
    graph.get_pruning_group(net[0].expand, prune, [0, 3]).prune()
    graph.get_pruning_group(net[0].reduce, prune, [1]).prune()
    assert (net[0].rank, net[0].out_channels, net[2].in_channels) == (3, 6, 6)
    assert net(x).shape == (2, 6, 5, 5)


INNER = {
    "linear": {"reduce.weight": (3, 6), "expand.weight": (10, 3)},
    "plain": {"reduce.weight": (3, 6, 3, 3), "expand.weight": (10, 3, 1, 1)},
}


@torch.no_grad()
@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("geometry", INNER)
def test_a_bias_in_between_is_part_of_the_one_bias(geometry, outer):
    layer = copy.deepcopy(GEOMETRIES[geometry])
    shapes = INNER[geometry] | {"reduce.bias": (3,)} | ({"expand.bias": (10,)} if outer else {})
    factorized = fill(Factorized.from_shapes(layer, shapes))
    layer.weight.copy_(factorized.weight)
    layer.bias.copy_(factorized.bias)
    x = inputs_of(layer)
    assert torch.allclose(layer(x), factorized(x), rtol=1e-4, atol=1e-4)


def test_a_bias_before_padded_zeros_is_no_single_bias():
    shapes = {"reduce.weight": (3, 6, 3, 1), "reduce.bias": (3,), "expand.weight": (10, 3, 1, 3)}
    assert not hasattr(Factorized.from_shapes(GEOMETRIES["plain"], shapes), "bias")
    del shapes["reduce.bias"]
    assert Factorized.from_shapes(GEOMETRIES["plain"], shapes).bias is None
