import copy
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.compress import Context, Step, bisection, comparing
from ssdistill.compress.comparing import weight_bytes
from ssdistill.compress.prune import Prune
from ssdistill.compress.pruning import soundness
from ssdistill.compress.pruning.blocks import find_blocks, without
from ssdistill.compress.pruning.graph import find_groups
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS

SMALL = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}
INNER = ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1")


def encoder_of(name="resnet10t", size=32, **args):
    torch.manual_seed(0)
    args = args or (SMALL if name == "resnet10t" else {})
    return build_encoder(EncoderSettings(name=name, args=args, stem_stride=2), size).eval()


def prune(encoder, **settings):
    context = Context(images=lambda n, seed: torch.zeros(0), folder=Path())
    return Prune(**settings).apply(encoder, context), context.record


def widths(encoder):
    return {n: tuple(p.shape) for n, p in encoder.net.named_parameters()}


def test_the_registry_finds_the_step_and_its_settings():
    settings = STEPS.schema("prune")(ratio=0.25)
    step = STEPS.build(settings)
    assert isinstance(step, Step) and isinstance(step, Prune) and step.ratio == 0.25


@torch.no_grad()
def test_pruned_equals_the_dense_network_with_the_removed_channels_masked():
    encoder = encoder_of()
    masked = copy.deepcopy(encoder)
    pruned, _ = prune(encoder, ratio=0.5, criterion="random", round_to=4)
    for name in INNER:
        conv, norm = masked.net.get_submodule(name), masked.net.get_submodule(name[:-5] + "bn1")
        stay = pruned.net.get_submodule(name).weight
        kept = {
            c for c in range(len(conv.weight)) for row in stay if torch.equal(conv.weight[c], row)
        }
        assert len(kept) == len(stay) < len(conv.weight)
        gone = sorted(set(range(len(conv.weight))) - kept)
        norm.weight[gone], norm.bias[gone] = 0, 0
    x_BCHW = torch.rand(4, 3, 32, 32)
    expected_BD, found_BD = masked(x_BCHW).embedding_BD, pruned(x_BCHW).embedding_BD
    assert torch.allclose(expected_BD, found_BD, atol=1e-5)
    assert not torch.allclose(encoder(x_BCHW).embedding_BD, found_BD, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale"])
def test_channels_that_do_nothing_go_first(criterion):
    encoder = encoder_of()
    for name in INNER:
        conv, block = encoder.net.get_submodule(name), encoder.net.get_submodule(name[:-6])
        for tensor in (conv.weight, block.bn1.weight, block.bn1.bias):
            tensor[::2] = 0
        block.conv2.weight[:, ::2] = 0
    pruned, _ = prune(encoder, ratio=0.5, criterion=criterion)
    x_BCHW = torch.rand(4, 3, 32, 32)
    assert torch.allclose(
        encoder(x_BCHW).embedding_BD, pruned(x_BCHW).embedding_BD, rtol=1e-4, atol=1e-5
    )


def test_inner_leaves_the_residual_stream_and_all_narrows_it():
    encoder = encoder_of()
    dense = widths(encoder)
    inner, all_of_it = (widths(prune(encoder, ratio=0.5, scope=s)[0]) for s in ("inner", "all"))
    changed = {name for name in dense if dense[name] != inner[name]}
    assert {name.rsplit(".", 1)[0] for name in changed} == {
        f"layer{i}.0.{part}" for i in (1, 2, 3) for part in ("conv1", "bn1", "conv2")
    }
    assert all_of_it["layer1.0.bn2.weight"] == (8,) and all_of_it["layer3.0.bn2.weight"] == (64,)


def test_the_given_encoder_stays_as_it_was():
    encoder = encoder_of()
    encoder.net.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(encoder.net.state_dict())
    pruned, _ = prune(encoder, ratio=0.5)
    assert all(torch.equal(v, before[k]) for k, v in encoder.net.state_dict().items())
    assert not pruned.net.conv1.weight.requires_grad
    assert pruned.net.bn1.weight.requires_grad and pruned.net.bn1.weight.grad is None


@pytest.mark.parametrize(
    ("budget", "measure"), [("macs", count_macs), ("parameters", count_parameters)]
)
def test_budget_is_met_and_not_undershot_by_much(budget, measure):
    encoder = encoder_of()
    pruned, record = prune(encoder, round_to=2, **{budget: 0.7})
    assert 0.6 < measure(pruned) / measure(encoder) <= 0.7
    assert record[f"{budget}_after"] == measure(pruned)


def test_widths_are_multiples_of_round_to():
    pruned, _ = prune(encoder_of(), ratio=0.3, round_to=8, global_ranking=True)
    assert all(pruned.net.get_submodule(name).out_channels % 8 == 0 for name in INNER)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("resnet26", 32, {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16)}),
        ("mobilenetv3_small_050", 32, {}),
        ("tinynet_e", 32, {}),
        (
            "vit_tiny_patch16_224",
            32,
            {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48},
        ),
    ],
)
def test_other_architectures_keep_their_embedding_width(name, size, args):
    encoder = encoder_of(name, size, **args)
    pruned, record = prune(encoder, ratio=0.5)
    assert pruned(torch.rand(2, 3, size, size)).embedding_BD.shape == (2, encoder.embed_dim)
    assert record["parameters_after"] == count_parameters(pruned) < record["parameters_before"]


def test_random_choice_follows_the_seed():
    encoder = encoder_of()
    one, same, other = (
        prune(encoder, ratio=0.5, criterion="random", seed=s)[0].net.layer3[0].conv1.weight
        for s in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of ratio, .* and cka .none is set"),
        ({"ratio": 0.5, "macs": 0.5}, "ratio=0.5 and macs=0.5 are set"),
        ({"ratio": 0.5, "round_to": 64}, "round_to=64 leaves all widths of 'resnet10t'"),
        ({"macs": 0.05}, r"macs=0.05 cannot be reached .* still leave 0\.\d"),
        ({"ratio": 0.5, "units": ("heads",)}, "'resnet10t' has no heads that scope=inner may"),
        ({"ratio": 0.5, "units": ("blocks",)}, "at least 4 images, got 0"),
        ({"ratio": 0.5, "units": ("blocks", "heads")}, "cannot be combined with other units"),
        ({"ratio": 0.5, "refit": True}, "run between rounds"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(settings, words):
    encoder = encoder_of()
    before = copy.deepcopy(encoder.net.state_dict())
    with pytest.raises(UserError, match=words) as raised:
        prune(encoder, **settings)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(v, before[k]) for k, v in encoder.net.state_dict().items())


@torch.no_grad()
def test_a_network_that_could_not_be_loaded_again_is_refused_by_name(monkeypatch):
    def refuse(net, state, removed):
        raise UserError("tensor 'conv1.weight' has shape (1,)")

    monkeypatch.setattr(soundness, "fit_structure", refuse)
    with pytest.raises(
        UserError, match=r"does not support 'resnet10t': .*saved and loaded: tensor"
    ):
        prune(encoder_of(), ratio=0.5)


def test_bytes_are_those_of_the_weights_file(tmp_path):
    encoder = encoder_of()
    pruned, record = prune(encoder, bytes=0.7, round_to=2)
    sizes = []
    for number, model in enumerate((encoder, pruned)):
        save_encoder(model, tmp_path / str(number), {})
        sizes.append((tmp_path / str(number) / "model.safetensors").stat().st_size)
    assert weight_bytes(pruned) == sizes[1]
    assert record["share"] == sizes[1] / sizes[0] and 0.6 < record["share"] <= 0.7


def test_latency_is_measured_in_turns_with_the_dense_network(monkeypatch):
    seen = []

    def by_parameters(model, reference, inputs, *, batch_size, threads):
        seen.append((batch_size, threads, len(inputs), reference is encoder))
        return SimpleNamespace(speedup=count_parameters(reference) / count_parameters(model))

    monkeypatch.setattr(comparing, "paired_latency", by_parameters)
    monkeypatch.setattr(comparing, "float_onnx", nullcontext)
    monkeypatch.setitem(bisection.HALVINGS, "latency", 3)
    encoder = encoder_of()
    pruned, record = prune(encoder, latency=0.6, round_to=2)
    assert set(seen) == {(1, 1, 1, True)} and len(seen) == 5
    share = count_parameters(pruned) / count_parameters(encoder)
    assert 0.4 < share <= 0.6 and record["share"] == pytest.approx(share)


def test_a_share_of_the_original_is_not_one_of_what_is_left():
    encoder = encoder_of()
    half, _ = prune(encoder, macs=0.7, round_to=2)
    given = {"images": lambda n, seed: torch.zeros(0), "folder": Path()}
    context = Context(original=encoder, **given)
    again = Prune(macs=0.5, of="original", round_to=2).apply(half, context)
    assert 0.4 < count_macs(again) / count_macs(encoder) <= 0.5
    kept = Prune(macs=0.9, of="original").apply(half, context)
    assert count_macs(kept) == count_macs(half) and context.record["ratio"] == 0
    rest = Prune(ratio=0.75, of="original", round_to=4).apply(
        prune(encoder, ratio=0.5, round_to=4)[0], context
    )
    assert rest.net.layer3[0].conv1.out_channels == 16
    with pytest.raises(UserError, match=r"of=original requires context\.original"):
        prune(half, macs=0.5, of="original")


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"macs": 0.4}, [0.8, 0.6, 0.4]),
        ({"ratio": 0.6}, [0.2, 0.4, 0.6]),
        ({"bytes": 0.46, "schedule": "cubic"}, [0.62, 0.48, 0.46]),
    ],
)
def test_rounds_become_steps_with_recovery_between_them(settings, shares):
    (key,) = settings.keys() - {"schedule"}
    made = STEPS.schema("prune")(rounds=3, recover={"steps": 7}, gate={"cka": 0.5}, **settings)
    steps = Prune.expand(made)
    assert [step.kind for step in steps] == ["prune", "recover", "prune", "recover", "prune"]
    rounds = steps[::2]
    assert [getattr(step, key) for step in rounds] == pytest.approx(shares)
    assert {(s.of, s.rounds, s.recover) for s in rounds} == {("original", 1, None)}
    assert [s.gate is None for s in rounds] == [True, True, False]
    assert {step.steps for step in steps[1::2]} == {7}
    assert all(Prune.expand(step) == [step] and STEPS.build(step) for step in rounds)


def test_a_mistake_in_the_recovery_between_rounds_is_named():
    made = STEPS.schema("prune")(rounds=2, ratio=0.5, recover={"step": 7})
    with pytest.raises(UserError, match=r"^prune\.recover\.step: "):
        Prune.expand(made)


class Worthless(torch.nn.Module):
    """A residual block that adds next to nothing."""

    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = torch.nn.Linear(8, 8), scale

    def forward(self, x):
        return x + self.scale * self.layer(x)


def test_the_blocks_that_do_least_are_taken_out():
    torch.manual_seed(0)
    blocks = [Worthless(scale) for scale in (3, 1e-4, 3, 1e-3)]
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    model = Wrapped(torch.nn.Sequential(*blocks, plain), torch.randn(64, 8))
    assert find_blocks(model) == ["0", "1", "2", "3"]
    context = Context(images=lambda n, seed: model.example(n), folder=Path())
    pruned = Prune(units=("blocks",), ratio=0.5, images=64).apply(model, context)
    assert pruned.removed == ("1", "3") and context.record["blocks"] == "1 3"
    assert isinstance(pruned.net[1], torch.nn.Identity)
    x = torch.randn(4, 8)
    assert torch.allclose(pruned(x).embedding_BD, model(x).embedding_BD, atol=1e-2)
    again = Prune(units=("blocks",), parameters=0.7, protect=("0.layer",)).apply(pruned, context)
    assert again.removed == ("1", "2", "3")
    with pytest.raises(UserError, match=r"ratio=0.01 of the blocks of 'Sequential' rounds to zero"):
        Prune(units=("blocks",), ratio=0.01).apply(model, context)


def test_residual_blocks_of_a_resnet_are_those_without_a_downsampling():
    args = {"layers": (2, 1, 1, 0), "channels": (8, 8, 16, 16)}
    encoder = encoder_of("resnet10t", 16, **args)
    assert find_blocks(encoder) == ["layer1.1"]
    frozen = copy.deepcopy(encoder).requires_grad_(False)
    assert find_blocks(frozen) == find_blocks(encoder)


def test_channels_of_a_removed_block_are_forgotten():
    args = {"layers": (2, 1, 0, 0), "channels": (16, 16, 16, 16)}
    encoder = encoder_of("resnet10t", 16, **args)
    narrow, _ = prune(encoder, ratio=0.5)
    assert "layer1.1.conv1" in narrow.channels
    short = without(narrow, ["layer1.1"])
    assert set(short.channels) == set(narrow.channels) - {"layer1.1.conv1"}
    assert narrow.removed == () and short.removed == ("layer1.1",)


def test_a_protected_layer_blocks_its_group():
    encoder = encoder_of()
    pruned, record = prune(encoder, ratio=0.5, protect=("layer1.0.bn1",))
    assert pruned.net.layer1[0].conv1.out_channels == 16
    assert record["whole"] == "layer1.0.conv1 (protected by layer1.0.bn1)"
    with pytest.raises(UserError, match=r"no channels or heads .*protected by layer"):
        prune(encoder, ratio=0.5, protect=[n.replace("conv1", "bn1") for n in INNER])
    with pytest.raises(UserError, match=r"no layer 'layer1.0.bn3' \(did you mean"):
        prune(encoder, ratio=0.5, protect=("layer1.0.bn3",))


class Branching(torch.nn.Module):
    """Takes a second layer or not, as its input is."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x) if x.mean() > 100 else x


class Rolled(torch.nn.Module):
    """Gives every channel to its neighbor."""

    def forward(self, x):
        return x.roll(1, 1)


class Halves(torch.nn.Module):
    """One half of the channels gates the other."""

    def forward(self, x):
        one, other = x.chunk(2, 1)
        return one * other.sigmoid()


def between(*modules):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), *modules, torch.nn.Linear(16, 4))
    return Wrapped(torch.nn.Sequential(net), torch.rand(2, 8), name="toy")


def test_control_flow_that_depends_on_the_data_is_refused():
    with pytest.raises(UserError, match=r"^prune does not support 'toy': .*'0.1' has control flow"):
        prune(between(Branching()), ratio=0.5)


def test_torchscript_is_refused():
    model = between(torch.nn.Linear(16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.net[0][1] = torch.jit.script(model.net[0][1])
    with pytest.raises(UserError, match=r"'toy': its module '0.1' is TorchScript"):
        prune(model, ratio=0.5)


def test_an_operator_that_mixes_channels_keeps_its_layer_whole():
    with pytest.raises(UserError, match=r"may remove: 0.0 \(an operator between it"):
        prune(between(Rolled()), ratio=0.5)
    model = between(Rolled(), torch.nn.Linear(16, 16))
    pruned, record = prune(model, ratio=0.5)
    assert record["whole"].startswith("0.0 (") and list(pruned.channels) == ["0.2"]


def test_halves_that_are_multiplied_go_together():
    model = between(torch.nn.Linear(16, 32), Halves())
    (pair,) = [g for g in find_groups(model, "all") if g.root == "0.1"]
    assert pair.width == 2 and len(pair.score_C) == 16
    pruned, _ = prune(model, ratio=0.5, scope="all")
    kept = torch.tensor(pruned.channels["0.1"])
    assert torch.equal(kept[:8], kept[8:] - 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    encoder = encoder_of()
    with torch.no_grad():
        encoder.net.layer2[0].conv1.weight[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"^prune: tensor 'layer2.0.conv1.weight' of 'resnet10t'"):
        prune(encoder, ratio=0.5)


def test_a_module_is_to_be_wrapped_first(tmp_path):
    with pytest.raises(UserError, match=r"^prune: Linear is not a model of ssdistill; wrap it: "):
        Prune(ratio=0.5).apply(torch.nn.Linear(3, 3), Context(lambda n, seed: None, tmp_path))


def test_a_file_for_a_runtime_is_refused():
    file = SimpleNamespace(path=Path("model.onnx"), runtime="onnxruntime")
    with pytest.raises(UserError, match=r"^prune cannot follow quantize or export: model\.onnx is"):
        prune(file, ratio=0.5)


def test_feature_maps_of_the_pruned_network_are_its_own():
    encoder = encoder_of()
    encoder.set_taps(("layer2",))
    pruned, _ = prune(encoder, ratio=0.5, scope="all")
    x_BCHW = torch.rand(2, 3, 32, 32)
    assert pruned(x_BCHW).maps["layer2"].shape[1] == 16
    assert encoder(x_BCHW).maps["layer2"].shape[1] == 32
