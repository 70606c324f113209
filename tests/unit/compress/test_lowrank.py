import contextlib
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdistill.compress import Context, Step
from ssdistill.compress.factors.moments import Positions
from ssdistill.compress.factors.ranks import list_choices
from ssdistill.compress.lowrank import LowRank
from ssdistill.compress.prune import Prune
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.factorized import Factorized
from ssdistill.models.structure import fit_structure
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS

RESNET = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
METHODS = ("data", "svd", "spatial", "tucker")


def encoder_of(name="resnet10t", size=32, **args):
    torch.manual_seed(0)
    args = args or (RESNET if name == "resnet10t" else {})
    return build_encoder(EncoderSettings(name=name, args=args, stem_stride=2), size).eval()


def lowrank(model, inputs=None, **settings):
    def images(count, seed):
        generator = torch.Generator().manual_seed(seed + 1)
        return torch.rand(min(count, 32), 3, 32, 32, generator=generator)

    give = images if inputs is None else lambda count, seed: inputs
    context = Context(images=give, folder=Path())
    return LowRank(**{"round_to": 4, **settings}).apply(model, context), context.record


def factors_of(model):
    return {n: m for n, m in model.net.named_modules() if isinstance(m, Factorized)}


@torch.no_grad()
def reload(model):
    net = fit_structure(model.fresh_net(), model.net.state_dict(), model.removed)
    if any(p.is_meta for p in net.parameters()):
        net = net.to_empty(device="cpu")
        for name, buffer in net.named_buffers():
            buffer.copy_(model.net.get_buffer(name))
    net.load_state_dict(model.net.state_dict())
    again = copy.deepcopy(model)
    again.net = net.eval()
    return again


def test_the_registry_finds_the_step_and_its_settings():
    step = STEPS.build(STEPS.schema("lowrank")(keep=0.25, layers=["a*"]))
    assert isinstance(step, Step) and isinstance(step, LowRank) and step.reshapes
    assert (step.method, step.goal, step.fraction, step.layers) == ("data", "keep", 0.25, ("a*",))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_network_of_low_rank_is_kept_as_it_is(method):
    encoder = encoder_of()
    small, _ = lowrank(encoder, keep=0.6, method=method)
    assert factors_of(small)
    dense = copy.deepcopy(encoder)
    for name, factors in factors_of(small).items():
        layer = dense.net.get_submodule(name)
        layer.weight.copy_(factors.weight)
        if factors.bias is not None:
            layer.bias = nn.Parameter(factors.bias)
    again, record = lowrank(dense, energy=0.999, method=method)
    x = torch.rand(4, 3, 32, 32)
    assert record["energy"] > 0.999
    assert factors_of(again).keys() >= factors_of(small).keys()
    expected = small(x).embedding_BD
    for found in (dense, again):
        assert (found(x).embedding_BD - expected).norm() < 2e-3 * expected.norm()


@torch.no_grad()
def test_data_agrees_better_than_weights_alone_at_the_same_ranks():
    encoder = encoder_of()
    x = torch.rand(32, 1, 8, 8).repeat(1, 3, 1, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    new, x = x[:16], x[16:]
    error = {}
    for method, compensate in (("svd", False), ("data", False), ("data", True)):
        small, _ = lowrank(encoder, x, keep=0.5, method=method, compensate=compensate)
        difference = small(new).embedding_BD - encoder(new).embedding_BD
        error[method, compensate] = difference.norm().item()
    assert error["data", False] < 0.6 * error["svd", False]
    assert error["data", True] < error["data", False]


@pytest.mark.parametrize("method", METHODS)
def test_energy_is_kept_by_every_layer_with_the_smallest_rank_that_does(method):
    encoder = encoder_of()
    inputs = torch.rand(16, 3, 32, 32)
    small, record = lowrank(encoder, inputs, energy=0.8, method=method)
    assert 0.8 <= record["energy"] < 1
    assert record["layers"] == f"{len(factors_of(small))}/9"
    if method != "svd":
        return
    for name, factors in factors_of(small).items():
        weight = encoder.net.get_submodule(name).weight.flatten(1)
        energies = torch.linalg.svdvals(weight).square()
        share = energies.cumsum(0) / energies.sum()
        assert share[factors.rank - 1] >= 0.8 > share[factors.rank - 5]


@pytest.mark.parametrize("method", METHODS)
def test_keep_bounds_the_weights_of_every_layer(method):
    encoder = encoder_of()
    small, _ = lowrank(encoder, keep=0.5, method=method)
    assert len(factors_of(small)) > 4
    for name, factors in factors_of(small).items():
        dense = sum(p.numel() for p in encoder.net.get_submodule(name).parameters())
        assert 0.25 < sum(p.numel() for p in factors.parameters()) / dense <= 0.5
        ranks = factors.rank if isinstance(factors.rank, tuple) else (factors.rank,)
        assert all(rank % 4 == 0 for rank in ranks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("goal", ["macs", "parameters", "bytes"])
def test_budgets_are_met_and_not_undershot_by_much(goal, method):
    encoder = encoder_of()
    measure = {"macs": count_macs, "parameters": count_parameters, "bytes": tensor_bytes}[goal]
    small, record = lowrank(encoder, round_to=1, method=method, **{goal: 0.6})
    assert 0.58 < measure(small) / measure(encoder) <= 0.6
    assert record["parameters_after"] == count_parameters(small) < record["parameters_before"]
    assert record["macs_after"] == count_macs(small) < record["macs_before"]


def tensor_bytes(model):
    return sum(t.numel() * t.element_size() for t in model.net.state_dict().values())


def test_a_latency_is_sought_by_measuring(monkeypatch):
    encoder, measured = encoder_of(), []
    whole = count_macs(encoder)

    @contextlib.contextmanager
    def relative_cost(key, reference):
        """A machine on which two layers take a fifth longer than their MACs say."""
        assert key == "latency" and count_macs(reference) == whole

        def cost(model):
            measured.append(1.2 * count_macs(model) / whole)
            return measured[-1]

        yield cost

    monkeypatch.setattr("ssdistill.compress.factors.factorize.relative_cost", relative_cost)
    small, _ = lowrank(encoder, latency=0.7, round_to=1)
    latency = 1.2 * count_macs(small) / whole
    assert latency in measured and 0.65 < latency <= 0.7
    assert latency == max(share for share in measured if share <= 0.7)
    with pytest.raises(
        UserError, match=r"latency=0.1 cannot be reached .* still leave 0.\d+; lower"
    ):
        lowrank(encoder, latency=0.1)


def test_a_budget_is_spent_where_it_costs_the_least_energy():
    torch.manual_seed(0)
    flat, steep = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    basis = torch.linalg.qr(torch.randn(64, 64))[0]
    with torch.no_grad():
        flat.weight.copy_(basis)
        steep.weight.copy_(basis * 0.8 ** torch.arange(64))
    model = Wrapped(nn.Sequential(flat, steep), torch.randn(4, 64))
    small, _ = lowrank(model, method="svd", parameters=0.6, round_to=1)
    # 0.6 of 8192 parameters leave the second 819 where the first stays whole: rank 6.
    assert {name: factors.rank for name, factors in factors_of(small).items()} == {"1": 6}
    uniform, _ = lowrank(model, method="svd", keep=0.6, round_to=1)
    x = torch.randn(50, 64)
    error = [(m(x).embedding_BD - model(x).embedding_BD).norm() for m in (small, uniform)]
    assert error[0] < 0.6 * error[1]


def test_layers_that_would_become_dearer_stay_and_so_do_grouped_ones():
    encoder = encoder_of("test_efficientnet")
    small, record = lowrank(encoder, energy=0.6, round_to=8)
    for name, layer in encoder.net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            found = small.net.get_submodule(name)
            if layer.weight.shape[1] == 1 or layer.weight[0].numel() < 9:
                assert type(found) is type(layer)
            if isinstance(found, Factorized):
                before, after = (sum(p.numel() for p in m.parameters()) for m in (layer, found))
                assert after < before
    done, candidates = map(int, record["layers"].split("/"))
    assert 0 < done < candidates


def test_no_rank_saves_parameters_at_the_expense_of_macs():
    # Vertical kernels of a strided convolution work on a map that is still twice as wide: 23
    # ranks have fewer parameters, but from 16 on as many MACs.
    conv, positions = nn.Conv2d(16, 16, 3, stride=2, padding=1), Positions(1024, 512, 256)
    options = list_choices(conv, "spatial", positions, round_to=1).factors
    assert [option.rank for option in options] == list(range(15, 0, -1))


def test_patterns_choose_the_layers():
    encoder = encoder_of()
    chosen = {"layers": ("layer2.*", "layer3.*"), "exclude": ("*.downsample.*", "*.conv2")}
    small, record = lowrank(encoder, keep=0.5, **chosen)
    assert set(factors_of(small)) == {"layer2.0.conv1", "layer3.0.conv1"}
    assert record["layers"] == "2/2"


def test_the_given_encoder_and_the_global_generator_stay_as_they_were():
    encoder = encoder_of().train()
    encoder.net.layer3[0].conv1.weight.requires_grad_(False)
    encoder.set_taps(("layer2",))
    before, generator = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    small, _ = lowrank(encoder, keep=0.5, compensate=True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert encoder.state_dict().keys() == before.keys() and encoder.training
    assert small.training and all(m.training for m in small.modules())
    assert not small.net.layer3[0].conv1.expand.bias.requires_grad
    assert small.net.layer2[0].conv1.expand.bias.requires_grad
    assert small.taps == ("layer2",) and "layer2" in small(torch.rand(2, 3, 32, 32)).maps


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "args", "compensate"),
    [
        ("resnet10t", {}, True),
        ("vgg", {}, False),
        ("vgg", {}, True),
        ("mobilenetv3_small_050", {}, False),
        ("test_efficientnet", {}, False),
        ("test_convnext", {}, False),
        ("test_byobnet", {}, True),
        ("vit_tiny_patch16_224", VIT, True),
    ],
)
def test_architectures_stay_usable_and_can_be_loaded_again(name, args, compensate):
    encoder = wrapped_vgg() if name == "vgg" else encoder_of(name, **args)
    small, _ = lowrank(encoder, parameters=0.8, compensate=compensate)
    x = torch.rand(4, 3, 32, 32)
    embedding_BD = small(x).embedding_BD
    assert embedding_BD.shape == (4, encoder.embed_dim) and embedding_BD.isfinite().all()
    assert count_parameters(small) <= 0.8 * count_parameters(encoder)
    assert torch.equal(reload(small)(x).embedding_BD, embedding_BD)


def wrapped_vgg():
    """The shape of a VGG: plain 3x3 convolutions, poolings, then wide linear layers."""
    torch.manual_seed(0)
    layers, width = [], 3
    for wide in (16, "pool", 32, "pool", 64, 64, "pool"):
        if wide == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            width = wide
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 48))
    return Wrapped(net, torch.rand(2, 3, 32, 32)).eval()


@torch.no_grad()
def test_a_language_model_is_factorized_too():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=2, **sizes)
    tokens_BT = torch.randint(0, 50, (8, 6))
    bert = transformers.BertModel(config)
    model = Wrapped(bert, tokens_BT, embed=lambda net, x_BT: net(x_BT).pooler_output).eval()
    small, _ = lowrank(model, tokens_BT, keep=0.8, exclude=("pooler*",))
    names = set(factors_of(small))
    assert {n.removeprefix("encoder.layer.1.") for n in names if ".1." in n} == {
        *(f"attention.self.{part}" for part in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    }
    expected, found = model(tokens_BT).embedding_BD, small(tokens_BT).embedding_BD
    assert (found - expected).norm() < 0.5 * expected.norm()
    assert torch.equal(reload(small)(tokens_BT).embedding_BD, found)


@torch.no_grad()
def test_what_is_known_of_channels_and_storage_is_handed_on():
    encoder = encoder_of()
    encoder.channels = {"layer3.0.conv1": [0, 1], "bn1": [3]}
    encoder.coded = {"layer3.0.conv1.weight": "coded", "layer3.0.bn1.weight": "coded"}
    encoder.removed = ("layer9",)
    with pytest.raises(UserError, match=r"cannot be saved and loaded.*layer9"):
        lowrank(encoder, keep=0.5)
    encoder.removed = ()
    small, _ = lowrank(encoder, keep=0.5, layers=("layer3.0.conv1",))
    assert small.channels == {"layer3.0.conv1.expand": [0, 1], "bn1": [3]}
    assert list(small.coded) == ["layer3.0.bn1.weight"]
    assert encoder.channels.keys() == {"layer3.0.conv1", "bn1"} and len(encoder.coded) == 2


@pytest.mark.parametrize("compensate", [False, True])
def test_every_part_keeps_its_mode(compensate):
    model = wrapped_vgg()
    model.train()
    model.net[1].eval()
    model.net[4].eval()
    before = {name: part.training for name, part in model.named_modules()}
    small, _ = lowrank(model, keep=0.5, layers=("4", "8"), compensate=compensate)
    assert {name: part.training for name, part in model.named_modules()} == before
    assert {n: p.training for n, p in small.named_modules() if n in before} == before
    assert [small.net[i].expand.training for i in (4, 8)] == [False, True]


def test_it_follows_pruning_and_itself():
    encoder = encoder_of()
    context = Context(images=lambda n, seed: torch.rand(8, 3, 32, 32), folder=Path())
    pruned = Prune(ratio=0.3, round_to=4).apply(encoder, context)
    small, _ = lowrank(pruned, keep=0.5, layers=("layer3.*",))
    again, _ = lowrank(small, keep=0.5)
    assert set(factors_of(again)) > set(factors_of(small))
    assert not any(".reduce." in name for name in factors_of(again))
    assert count_parameters(again) < count_parameters(small) < count_parameters(pruned)


class RuntimeFile:
    path, runtime = "model.onnx", "onnxruntime"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set exactly one of energy, keep, macs, parameters, bytes and latency .none is set"),
        ({"energy": 0.9, "macs": 0.5}, "energy=0.9 and macs=0.5 are set"),
        ({"keep": 0.5, "method": "svd", "compensate": True}, "compensate requires method=data"),
        (
            {"macs": 0.01},
            r"lowrank: macs=0.01 cannot be reached for 'resnet10t': .* still leave 0\.\d+;",
        ),
        ({"parameters": 0.01}, "parameters=0.01 cannot be reached"),
        ({"bytes": 0.01}, "bytes=0.01 cannot be reached"),
        (
            {"energy": 0.9, "round_to": 99},
            "no layer of .* at ranks that are multiples of round_to=99",
        ),
        ({"energy": 0.999999}, r"becomes cheaper at energy=0.999999; the nearest is 0\.9\d+$"),
        ({"keep": 0.01}, r"becomes cheaper at keep=0.01; the nearest is 0\.0\d+$"),
        ({"keep": 0.5, "layers": ("layr1.*",)}, "matches 'layr1.\\*' .did you mean 'layer1'"),
        ({"keep": 0.5, "exclude": ("*",)}, "exclude leaves no layer of 'resnet10t' to factorize"),
    ],
)
def test_mistakes_are_told_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        lowrank(encoder_of(), **settings)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_factorized_is_told_in_one_line():
    encoder = encoder_of()
    with torch.no_grad():
        encoder.net.layer2[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(
        UserError, match=r"lowrank: tensor '.*layer2.0.conv1.weight' of 'resnet10t'"
    ):
        lowrank(encoder, keep=0.5)
    with pytest.raises(UserError, match=r"model.onnx is a file for onnxruntime"):
        lowrank(RuntimeFile(), keep=0.5)
    alone = Wrapped(nn.Sequential(nn.Conv1d(3, 3, 1), nn.Flatten()), torch.rand(2, 3, 4))
    with pytest.raises(
        UserError, match="'Sequential' has no convolution or linear layer that can be factorized"
    ):
        lowrank(alone, keep=0.5)


def test_a_network_that_reads_its_layers_in_ways_no_factors_allow_is_told():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x) * self.layer._parameters["weight"].dtype.itemsize

    model = Wrapped(Net(), torch.rand(4, 64))
    with pytest.raises(UserError, match="lowrank: 'Net' fails to run once factorized"):
        lowrank(model, torch.rand(8, 64), keep=0.5)
