import copy
from pathlib import Path

import pytest
import torch
from timm.layers import SqueezeExcite
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Block
from torch import nn

from ssdistill.compress import Context, Step
from ssdistill.compress import refit as refit_module
from ssdistill.compress.fitting.consumers import likeness
from ssdistill.compress.refit import Fit, Refit, refit, refit_layers
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def randomize(net, seed=0):
    """Weights of a sane size everywhere, batch-norm statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan**-0.5)
    return net.eval()


class Half:
    """Layers whose last half of outputs doubles the first, and is then removed.

    ``outputs`` write or scale the channels, ``inputs`` read them.
    """

    def __init__(self, outputs, inputs, after=None):
        self.outputs, self.inputs, self.after = outputs, inputs, after

    def double(self, net):
        for name in self.outputs:
            for tensor in net.get_submodule(name).state_dict().values():
                if tensor.ndim:
                    keep = first_half(name, len(tensor))
                    gone = sorted(set(range(len(tensor))) - set(keep))
                    tensor[gone] = tensor[keep]

    def cut(self, model):
        pruned = copy.deepcopy(model)
        for name in self.outputs:
            layer = pruned.net.get_submodule(name)
            keep = first_half(name, sum(1 for _ in next(layer.parameters())))
            for key, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if tensor.ndim:
                    replace(layer, key, tensor[keep])
            if getattr(layer, "groups", 1) > 1:
                layer.groups //= 2
            if isinstance(layer, nn.Conv2d | nn.Linear):
                pruned.channels[name] = keep
        for name in self.inputs:
            layer = pruned.net.get_submodule(name)
            replace(layer, "weight", layer.weight[:, : layer.weight.shape[1] // 2])
        if self.after is not None:
            self.after(pruned.net)
        return pruned


def first_half(name, width):
    """The first half of the channels; of queries, keys and values each."""
    if name.endswith("qkv"):
        return [i for i in range(width) if i % (width // 3) < width // 6]
    return list(range(width // 2))


def replace(layer, key, tensor):
    if key in layer._parameters:
        setattr(layer, key, nn.Parameter(tensor.detach().clone()))
    else:
        setattr(layer, key, tensor.clone())


class Pooled(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x):
        y = self.body(x)
        return y.flatten(2).mean(2) if y.ndim == 4 else y.mean(1)


class Excited(nn.Module):
    """Depthwise convolution, squeeze and excitation, projection."""

    def __init__(self):
        super().__init__()
        self.pw, self.dw = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.se, self.pwl = SqueezeExcite(12, rd_channels=6), nn.Conv2d(12, 5, 1, bias=False)

    def forward(self, x):
        return self.pwl(self.se(self.dw(self.pw(x).relu()).relu())).relu().mean((2, 3))


def images(count=64, side=8):
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(1))


def tokens(count=64):
    return torch.randn(count, 6, 16, generator=torch.Generator().manual_seed(1))


def one_head(net):
    attention = net.body[1].attn
    attention.num_heads, attention.attn_dim = 1, attention.head_dim


def convs(*between, **last):
    return Pooled(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *between,
        nn.Conv2d(8, 6, **last),
        nn.ReLU(),
    )


def vit():
    return Pooled(nn.Linear(16, 16), Block(16, 2, qkv_bias=True, init_values=0.1), nn.LayerNorm(16))


OUTPUTS = ("body.0", "body.1")
CASES = {
    "1x1": (lambda: convs(kernel_size=1), images, Half(OUTPUTS, ["body.3"])),
    "3x3 strided": (
        lambda: convs(kernel_size=3, stride=2, padding=1, padding_mode="reflect"),
        images,
        Half(OUTPUTS, ["body.3"]),
    ),
    "separable": (
        lambda: convs(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            kernel_size=1,
        ),
        images,
        Half((*OUTPUTS, "body.3", "body.4"), ["body.6"]),
    ),
    "squeeze and excitation": (
        Excited,
        images,
        Half(["pw", "dw", "se.fc2"], ["se.fc1", "pwl"]),
    ),
    "residual": (
        lambda: Pooled(nn.Conv2d(4, 8, 1), BasicBlock(8, 8), BasicBlock(8, 8)),
        images,
        Half([f"body.{i}.{part}1" for i in (1, 2) for part in ("conv", "bn")], ["body.1.conv2"])
    ),
    "mlp": (vit, tokens, Half(["body.1.mlp.fc1"], ["body.1.mlp.fc2"])),
    "heads": (vit, tokens, Half(["body.1.attn.qkv"], ["body.1.attn.proj"], one_head)),
    "linear": (
        lambda: nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 5)),
        lambda: tokens()[:, 0],
        Half(["0"], ["2"]),
    ),
}  # fmt: skip
CASES["residual"][2].inputs.append("body.2.conv2")


def make_pair(case):
    build, inputs, half = CASES[case]
    net = randomize(build())
    half.double(net)
    dense = Wrapped(net, inputs()[:2])
    return dense, half.cut(dense), inputs()


def unseen_like(x):
    return torch.randn(32, *x.shape[1:], generator=torch.Generator().manual_seed(5))


def difference(a, b, x):
    expected_BD = b(x).embedding_BD
    return ((a(x).embedding_BD - expected_BD).abs().max() / expected_BD.abs().max()).item()


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_what_kept_channels_can_express_is_restored(case, streams):
    dense, pruned, x = make_pair(case)
    assert difference(pruned, dense, unseen_like(x)) > 1e-2
    fitted, fits = refit_layers(pruned, dense, x, streams=streams)
    assert difference(fitted, dense, unseen_like(x)) < 1e-4
    assert {fit.layer for fit in fits} >= set(CASES[case][2].inputs)
    assert all(fit.left < 1e-6 for fit in fits if fit.layer in CASES[case][2].inputs)


def test_bert_is_restored_after_it_lost_heads_and_hidden_units():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=8,
    )  # fmt: skip
    net = randomize(transformers.BertModel(config))
    ids_BT = torch.randint(0, 40, (64, 8), generator=torch.Generator().manual_seed(2))
    outputs, inputs = [], []
    for i in (0, 1):
        layer = f"encoder.layer.{i}"
        outputs += [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        outputs.append(f"{layer}.intermediate.dense")
        inputs += [f"{layer}.attention.output.dense", f"{layer}.output.dense"]

    def one_head_each(net):
        for layer in net.encoder.layer:
            attention = layer.attention.self
            attention.num_attention_heads, attention.all_head_size = 1, 8

    half = Half(outputs, inputs, one_head_each)
    half.double(net)
    dense = Wrapped(net, ids_BT[:2], embed=lambda net, x: net(x).pooler_output)
    pruned = half.cut(dense)
    assert difference(pruned, dense, ids_BT) > 1e-2
    fitted, fits = refit_layers(pruned, dense, ids_BT)
    assert difference(fitted, dense, ids_BT.flip(1)) < 1e-4
    assert {fit.layer for fit in fits} == set(inputs)


def test_a_bias_the_layer_never_had_goes_into_the_batch_norm_behind_it():
    dense, pruned, x = make_pair("residual")
    # With a constant added to what is removed, only a bias can make up for it.
    dense.net.body[1].bn1.bias[4:] += 3
    fitted = refit(pruned, dense, x)
    assert fitted.net.body[1].conv2.bias is None
    moved = fitted.net.body[1].bn2.running_mean - dense.net.body[1].bn2.running_mean
    assert moved.abs().max() > 0.1


def test_a_bias_is_made_where_no_batch_norm_can_hold_it():
    dense, pruned, x = make_pair("squeeze and excitation")
    pruned.net.pwl.weight.requires_grad_(False)
    fitted = refit(pruned, dense, x)
    assert dense.net.pwl.bias is None and fitted.net.pwl.bias is not None
    assert not fitted.net.pwl.bias.requires_grad


def test_outputs_that_were_removed_too_are_not_asked_for():
    net, x = randomize(Pooled(*convs(kernel_size=1).body, nn.Conv2d(6, 2, 1))), images()
    Half([*OUTPUTS, "body.3"], []).double(net)
    dense = Wrapped(net, x[:2])
    pruned = Half([*OUTPUTS, "body.3"], ["body.3", "body.5"]).cut(dense)
    # The last half instead of the first, which is the same: only the indices tell.
    net.body[3].weight[:3] += 1
    replace(pruned.net.body[3], "bias", net.body[3].bias[3:])
    pruned.channels["body.3"] = [3, 4, 5]
    net.body[5].weight[:, :3] = 0
    assert difference(refit(pruned, dense, x), dense, unseen_like(x)) < 1e-4


def test_a_dense_network_that_was_pruned_itself_is_met_where_both_still_have_channels():
    dense, _, x = make_pair("linear")
    dense.channels["0"] = [1, 3, 5, 7, 9, 11, 13, 15]
    pruned = copy.deepcopy(dense)
    replace(pruned.net[0], "weight", dense.net[0].weight[[0, 1, 2, 3]])
    replace(pruned.net[0], "bias", dense.net[0].bias[[0, 1, 2, 3]])
    replace(pruned.net[2], "weight", dense.net[2].weight[:, [0, 1, 2, 3]])
    pruned.channels["0"] = [1, 3, 5, 7]
    assert difference(refit(pruned, dense, x), dense, unseen_like(x)) < 1e-4


def test_batch_norms_that_were_recalibrated_in_between_are_accounted_for():
    dense, pruned, x = make_pair("residual")
    for norm in (pruned.net.body[1].bn2, pruned.net.body[2].bn2):
        norm.running_mean += 0.5
        norm.running_var *= 3
        norm.weight *= 1.5
    assert difference(refit(pruned, dense, x), dense, unseen_like(x)) < 1e-4


def test_correcting_the_stream_makes_up_for_an_error_of_an_earlier_branch():
    dense, pruned, x = make_pair("residual")
    pruned.net.body[1].conv1.weight += 0.5
    plain, corrected = (refit(pruned, dense, x, streams=s) for s in (False, True))
    assert difference(corrected, dense, unseen_like(x)) < 0.9 * difference(
        plain, dense, unseen_like(x)
    )


def test_layers_after_a_removed_block_make_up_for_it():
    net = randomize(Pooled(nn.Conv2d(4, 8, 1), BasicBlock(8, 8), BasicBlock(8, 8)))
    dense, x = Wrapped(net, images()[:2]), images()
    pruned = copy.deepcopy(dense)
    pruned.net.body[1], pruned.removed = nn.Identity(), ("body.1",)
    fitted, fits = refit_layers(pruned, dense, x)
    assert [fit.layer for fit in fits if fit.left < 1] == ["body.2.conv1", "body.2.conv2"]
    assert difference(fitted, dense, unseen_like(x)) < 0.7 * difference(
        pruned, dense, unseen_like(x)
    )


def test_the_last_factor_of_a_factorized_layer_is_refitted():
    factorized = pytest.importorskip("ssdistill.models.factorized")
    dense, _, x = make_pair("linear")
    pruned = copy.deepcopy(dense)
    parts = factorized.Factorized.like(dense.net[2], 8, "channel")
    parts.reduce.weight.copy_(torch.eye(8))
    parts.expand.weight.copy_(dense.net[2].weight + 0.3)
    parts.expand.bias.zero_()
    pruned.net[2] = parts
    fitted, fits = refit_layers(pruned, dense, x)
    assert [fit.layer for fit in fits] == ["2.expand"]
    assert difference(fitted, dense, unseen_like(x)) < 1e-4


def test_both_networks_are_left_as_they_were():
    dense, pruned, x = make_pair("residual")
    pruned.train()
    before = [copy.deepcopy(m.net.state_dict()) for m in (dense, pruned)]
    fitted = refit(pruned, dense, x)
    for model, state in zip((dense, pruned), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items())
    assert fitted.net.training and not dense.net.training
    Refit().apply(pruned, context_of(x, before=dense))
    assert pruned.net.training and not dense.net.training
    assert fitted.channels == pruned.channels


def test_inputs_pass_in_small_batches_and_no_further_than_needed():
    dense, pruned, x = make_pair("3x3 strided")
    sizes = []
    hooks = [m.net.body[0].register_forward_hook(record(sizes)) for m in (dense, pruned)]
    ends = []
    hooks += [m.net.body[4].register_forward_hook(record(ends)) for m in (dense, pruned)]
    refit(pruned, dense, x)
    for hook in hooks:
        hook.remove()
    assert max(sizes) <= 32 < len(x) and len(ends) == 2


def record(sizes):
    def hook(module, args, output):
        sizes.append(len(output))

    return hook


def test_the_same_seed_gives_the_same_weights():
    dense, pruned, _ = make_pair("1x1")
    x = images(16, 24)
    # Not to be expressed by what is left: then it matters which places are seen.
    dense.net.body[0].weight += torch.rand(8, 4, 3, 3)
    one, same, other = (refit(pruned, dense, x, seed=s).net.body[3].weight for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_what_is_exact_already_hardly_changes():
    dense, pruned, x = make_pair("linear")
    pruned.net[2].weight += dense.net[2].weight[:, 4:]
    fitted = refit(pruned, dense, x)
    assert torch.allclose(fitted.net[2].weight, pruned.net[2].weight, atol=1e-5)


def test_a_weight_that_is_standardized_on_its_way_is_left_alone():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight, self.bias)

    net = randomize(Pooled(nn.Conv2d(4, 8, 1), nn.ReLU(), Standardized(8, 3, 1)))
    dense, x = Wrapped(net, images()[:2]), images()
    _, fits = refit_layers(Half(["body.0"], ["body.2"]).cut(dense), dense, x)
    assert fits == [Fit("body.2", 1.0)]


def test_a_parametrised_weight_is_left_alone():
    net = randomize(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = tokens()[:, 0]
    dense = Wrapped(net, x[:2])
    pruned = Half(["0"], ["2"]).cut(dense)
    nn.utils.parametrizations.weight_norm(pruned.net[2])
    _, fits = refit_layers(pruned, dense, x)
    assert fits == [Fit("2", 1.0)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, p, x: (p, d, x[:7]), "refit requires at least 8 inputs, got 7"),
        (
            lambda d, p, x: (d, d, x),
            "refit must follow prune: no layer of 'Pooled' has lost inputs",
        ),
        (lambda d, p, x: (p, d, x / 0), "inputs contain NaN or infinity"),
        (lambda d, p, x: (broken(p), d, x), "body.0.weight"),
        (lambda d, p, x: (p, broken(d), x), "body.0.weight"),
        (
            lambda d, p, x: (silent(p), d, x),
            "'Pooled' do not identify the remaining outputs of 'body.3'",
        ),
    ],
)
def test_what_cannot_be_done_is_said(change, words):
    dense, _, x = make_pair("1x1")
    pruned = Half([*OUTPUTS, "body.3"], ["body.3"]).cut(dense)
    with pytest.raises(UserError, match=words):
        refit(*change(dense, pruned, x))


def broken(model):
    model.net.body[0].weight[0, 0, 0, 0] = float("nan")
    return model


def silent(model):
    model.channels.clear()
    return model


def context_of(x, **networks):
    return Context(images=lambda n, seed: x[:n], folder=Path(), **networks)


def test_the_registry_finds_the_step_and_its_settings():
    step = STEPS.build(STEPS.schema("refit")(images=32, ridges=[0.1], depthwise=False))
    assert isinstance(step, Step) and isinstance(step, Refit) and step.images == 32
    assert step.settings["ridges"] == [0.1] and step.settings["depthwise"] is False


def test_the_step_goes_back_to_the_network_before_and_reports():
    dense, pruned, x = make_pair("residual")
    context = context_of(x, before=dense)
    fitted = Refit(images=48).apply(pruned, context)
    record = context.record
    assert difference(fitted, dense, unseen_like(x)) < 1e-4
    assert record["refitted"] == 2 and record["kept"] == 0 and record["accepted"] == 1
    assert record["left"] < 1e-6 and record["seconds"] > 0
    unseen = x[48:]
    for key, model in (("cka_before", pruned), ("cka_after", fitted)):
        assert record[key] == pytest.approx(likeness(model, dense, unseen))


def test_the_step_falls_back_to_the_original_and_refuses_without_one():
    dense, pruned, x = make_pair("linear")
    fitted = Refit(images=48).apply(pruned, context_of(x, original=dense))
    assert difference(fitted, dense, unseen_like(x)) < 1e-4
    with pytest.raises(UserError, match="refit requires the uncompressed network"):
        Refit().apply(pruned, context_of(x))


def test_the_step_keeps_the_model_if_unseen_inputs_agree_less(monkeypatch):
    dense, pruned, x = make_pair("linear")
    worse = copy.deepcopy(pruned)
    worse.net[2].weight += torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 10
    monkeypatch.setattr(
        "ssdistill.compress.refit.refit_layers", lambda *a, **k: (worse, [Fit("2", 0.5)])
    )
    context = context_of(x, before=dense)
    kept = Refit(images=48).apply(pruned, context)
    assert context.record["accepted"] == 0 and kept is not pruned
    assert torch.equal(kept.net[2].weight, pruned.net[2].weight)


def test_the_step_refuses_a_file():
    file = type("File", (), {"path": "model.onnx", "runtime": "onnxruntime"})()
    with pytest.raises(UserError, match="refit cannot follow quantize or export"):
        Refit().apply(file, context_of(images()))


def test_the_share_that_is_held_out_is_the_one_asked_for(monkeypatch, make_encoder):
    seen, split = [], refit_module.split_batches

    def note(inputs, held_out):
        batches = split(inputs, held_out)
        seen.append((held_out, sum(len(b) for b, held in batches if held)))
        raise UserError("enough")

    monkeypatch.setattr(refit_module, "split_batches", note)
    for share, count in ((0.25, 10), (0.5, 20), (0.1, 4)):
        with pytest.raises(UserError, match="enough"):
            refit_layers(make_encoder(), make_encoder(), torch.rand(40, 3, 16, 16), held_out=share)
        assert seen.pop() == (share, count)


def test_a_ridge_is_chosen_by_the_error_behind_the_batch_norm():
    """Half of the outputs weigh a thousandth: their errors must not count before the norm."""
    seen, best = {}, refit_module.best_map

    def note(fit_sums, held_sums, ridges, weight_GO):
        seen["weight"] = weight_GO.flatten().clone()
        return best(fit_sums, held_sums, ridges, weight_GO)

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    net = randomize(nn.Sequential(*layers))
    net[3].weight.copy_(torch.tensor([1.0, -2.0, 1e-3, 4.0]))
    net[3].running_var.fill_(1.0)
    pruned = copy.deepcopy(net)
    pruned[0] = nn.Conv2d(3, 4, 3)
    for name in ("weight", "bias"):
        getattr(pruned[0], name).copy_(getattr(net[0], name)[:4])
    pruned[2] = nn.Conv2d(4, 4, 3)
    pruned[2].weight.copy_(net[2].weight[:, :4])
    pruned[2].bias.copy_(net[2].bias)
    shell = lambda body: Wrapped(nn.Sequential(body, nn.Flatten()), torch.rand(4, 3, 7, 7))  # noqa: E731
    small, dense = shell(pruned).eval(), shell(net).eval()
    small.channels["0.0"] = [0, 1, 2, 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit_module, "best_map", note)
        refit_layers(small, dense, torch.rand(40, 3, 7, 7))
    scale = net[3].weight / (net[3].running_var + net[3].eps).sqrt()
    assert torch.allclose(seen["weight"].double(), scale.double().square(), rtol=1e-4)


def test_the_error_that_is_left_is_the_mean_over_layers(monkeypatch, make_encoder):
    fits = [Fit("a", 0.2), Fit("b", 1.0), Fit("c", 0.6)]
    monkeypatch.setattr(refit_module, "refit_layers", lambda model, *_, **__: (model, fits))
    dense = make_encoder().eval()
    context = Context(lambda n, seed: torch.rand(40, 3, 16, 16), Path(), before=dense)
    Refit().apply(copy.deepcopy(dense), context)
    assert context.record["left"] == pytest.approx(0.6)
    assert (context.record["refitted"], context.record["kept"]) == (2, 1)
