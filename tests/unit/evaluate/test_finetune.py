import copy

import numpy as np
import pytest
import timm
import torch
from color_encoders import Colors, color_subject, image_subject, state_of
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.evaluate.probes import finetuning
from ssdistill.evaluate.probes.finetuning import FineTuningTask, draw_fraction, trainable_copy
from ssdistill.evaluate.probes.layer_decay import decayed_rates, depths
from ssdistill.evaluate.protocols.finetune import Finetune
from ssdistill.models.factorized import Factorized
from ssdistill.models.representation import Representation
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import PROTOCOLS
from ssdistill.train.optim import OptimSettings, build_optimizer, set_rates

PRESETS = {
    # lightly 1.6 utils/benchmarking/linear_classifier.py, benchmarks/imagenet/resnet50.
    "lightly": {
        "epochs": 30,
        "batch_size": 256,
        "optimizer": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "lr_end": 1e-3,
        "layer_decay": 1.0,
        "fraction": 1.0,
        "head_init": "uniform",
    },
    # The fractions of arXiv:2002.05709, section 6; the rest is ours.
    "1pct": {"fraction": 0.01, "optimizer": "adamw", "lr": 1e-3, "epochs": 30},
    "10pct": {"fraction": 0.1, "optimizer": "adamw", "lr": 1e-3, "epochs": 30},
}


class Dropping(nn.Module):
    """Draws from torch's generator while it trains."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(0.2)

    def forward(self, x_BCHW):
        return Representation(self.dropout(self.encoder(x_BCHW).embedding_BD))


@pytest.mark.parametrize("preset", Finetune.presets)
def test_a_preset_has_the_values_of_its_source(preset):
    settings = PROTOCOLS.schema("finetune").model_validate({"preset": preset})
    made = PROTOCOLS.build(settings)
    assert {name: getattr(made, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert made.name == f"finetune_{preset}"


def test_the_rate_suits_the_optimizer_and_follows_lightlys_batch_size():
    assert Finetune(optimizer="sgd").lr == 0.05
    assert Finetune(preset="lightly", batch_size=64).lr == 0.0125
    assert Finetune(preset="lightly", batch_size=64, lr=0.3).lr == 0.3
    assert Finetune(preset="lightly", optimizer="adamw").lr == 1e-3
    with pytest.raises(UserError, match="both set"):
        Finetune(epochs=1, steps=1)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_colors_far_apart_are_learnt(optimizer):
    protocol = Finetune(optimizer=optimizer, lr=0.05, steps=60, batch_size=30, layer_decay=0.5)
    result = protocol.run(color_subject())
    assert result["top1"] == 100
    assert (result.details["n_train"], result.details["steps"]) == (120, 60)
    assert result.details["loss"][-1] < 0.5 * result.details["loss"][0]


def test_training_the_encoder_finds_what_a_frozen_one_hides():
    """The weight wipes out two colors; only a trained copy can tell the classes apart."""
    encoder = Colors()
    with torch.no_grad():
        encoder.weight.copy_(torch.diag(torch.tensor([1.0, 0.01, 0.01])))
    subject = color_subject(encoder=encoder)
    settings = {"optimizer": "sgd", "lr": 0.5, "steps": 80, "layer_decay": 1.0}
    assert Finetune(**settings).run(subject)["top1"] == 100


@pytest.mark.parametrize("preset", [None, "lightly"])
def test_the_encoder_and_the_generators_are_left_as_they_were(make_encoder, preset):
    encoder = Dropping(make_encoder())
    encoder.encoder.net.layer1.eval()
    next(encoder.parameters()).requires_grad_(False)
    before = state_of(encoder)
    result = Finetune(preset=preset, epochs=2, batch_size=16).run(image_subject(encoder))
    assert state_of(encoder) == before
    again = Finetune(preset=preset, epochs=2, batch_size=16).run(image_subject(encoder))
    assert again.details["loss"] == result.details["loss"]


def test_every_weight_and_statistic_of_the_copy_moves(make_encoder, monkeypatch):
    encoder, made = make_encoder().requires_grad_(False), []

    def watched(*given):
        made.append(trainable_copy(*given))
        return made[-1]

    monkeypatch.setattr(finetuning, "trainable_copy", watched)
    Finetune(steps=3, batch_size=16, head_init="normal").run(image_subject(encoder))
    before = encoder.state_dict()
    still = [name for name, v in made[0].state_dict().items() if torch.equal(v, before[name])]
    assert still == []


def test_sixteen_bits_learn_too():
    subject = color_subject(precision="bf16")
    assert Finetune(optimizer="sgd", lr=0.5, steps=60).run(subject)["top1"] > 95


def test_a_file_for_a_runtime_is_refused():
    subject = color_subject(encoder=lambda x_BCHW: Colors()(x_BCHW))
    with pytest.raises(UserError, match="finetune trains the encoder, but 'encoder' is exported"):
        Finetune(steps=1).run(subject)


def test_an_encoder_without_weights_is_refused():
    with pytest.raises(UserError, match="'thin' has no trainable weights"):
        trainable_copy(nn.Flatten(), "thin")


def test_a_factorized_encoder_trains_as_any_other(make_encoder):
    whole, layer = make_encoder(), "layer1.0.conv1"
    made = copy.deepcopy(whole)
    factors = Factorized.like(made.net.get_submodule(layer), 4, "spatial")
    for parameter in factors.parameters():
        nn.init.normal_(parameter, std=0.2)
    made.net.set_submodule(layer, factors)
    rates = decayed_rates(made, 0.5)
    assert rates[f"net.{layer}.reduce.weight"] == decayed_rates(whole, 0.5)[f"net.{layer}.weight"]
    result = Finetune(steps=2, batch_size=16).run(image_subject(made))
    assert 0 <= result["top1"] <= 100


def test_layers_of_a_residual_network_are_its_blocks(make_encoder):
    found = depths(make_encoder())
    assert set(found) == {name for name, _ in make_encoder().named_parameters()}
    assert {i for name, i in found.items() if name.startswith("net.conv1")} == {0}
    assert {i for name, i in found.items() if name.startswith("net.layer1.0")} == {1}
    assert {i for name, i in found.items() if name.startswith("net.layer2.0")} == {2}


def test_rates_of_a_vision_transformer_are_those_of_the_formula():
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=3, img_size=32)
    rates = decayed_rates(net, 0.65)
    for block in range(3):
        assert rates[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(0.65 ** (3 - block))
    for first in ("patch_embed.proj.weight", "cls_token", "pos_embed"):
        assert rates[first] == pytest.approx(0.65**4)
    assert rates["norm.weight"] == pytest.approx(0.65)


def test_layers_of_another_network_are_its_children_within_any_shell():
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten())
    shell = nn.ModuleDict({"body": inner})
    model = Wrapped(shell, torch.zeros(2, 3, 8, 8), lambda net, x: net["body"](x))
    assert depths(model) == {
        "net.body.0.weight": 0,
        "net.body.0.bias": 0,
        "net.body.2.weight": 1,
        "net.body.2.bias": 1,
    }


def test_the_optimizer_gets_the_rates_and_the_head_the_full_one():
    encoder = Wrapped(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.zeros(2, 3))
    task = FineTuningTask(encoder, nn.Linear(3, 2), torch.zeros(4).long(), layer_decay=0.1)
    settings = OptimSettings(lr=0.2, schedule="constant", warmup=0.0)
    optimizer = build_optimizer(task, settings)
    assert set_rates(optimizer, settings, 0, 10) == 0.2
    by_name = {id(p): name for name, p in task.named_parameters()}
    lr = {by_name[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert lr == pytest.approx(
        {
            **dict.fromkeys(("head.weight", "head.bias"), 0.2),
            **dict.fromkeys(("encoder.net.1.weight", "encoder.net.1.bias"), 0.02),
            **dict.fromkeys(("encoder.net.0.weight", "encoder.net.0.bias"), 0.002),
        }
    )


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_a_fraction_is_drawn_from_every_class_and_nested(fraction):
    counts = (200, 50, 3, 1)
    target_N = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(range(4), counts)))
    rows = draw_fraction(target_N, fraction, seed=2)
    drawn = torch.bincount(target_N[rows], minlength=4).tolist()
    assert drawn == [max(1, round(fraction * count)) for count in counts]
    assert len(rows.unique()) == len(rows)
    assert set(rows.tolist()) <= set(draw_fraction(target_N, 1.0, seed=2).tolist())
    assert set(draw_fraction(target_N, fraction / 2, seed=2).tolist()) <= set(rows.tolist())
    if fraction < 1:
        assert rows.tolist() != draw_fraction(target_N, fraction, seed=3).tolist()


def test_few_labels_are_all_that_is_seen():
    """Labels outside the draw are wrong, and do no harm."""
    subject = color_subject()
    kept = draw_fraction(torch.from_numpy(subject.train.labels), 0.1, seed=0).numpy()
    spoiled = (subject.train.labels + 1) % 3
    spoiled[kept] = subject.train.labels[kept]
    settings = {"preset": "10pct", "steps": 60, "lr": 0.1, "layer_decay": 1.0}
    found = Finetune(**settings).run(subject)
    assert found.metrics["probe/finetune_10pct/top1"] == 100
    assert found.details["n_train"] == found.details["batch_size"] == 12


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_has_the_label_smoothing_that_was_asked_for(smoothing):
    torch.manual_seed(0)
    encoder, head = Colors(), torch.nn.Linear(3, 4)
    target_N = torch.tensor([3, 0, 1, 2, 2])
    task = FineTuningTask(encoder, head, target_N, label_smoothing=smoothing)
    index_B = torch.tensor([4, 0, 2])
    view_BCHW = torch.rand(3, 3, 8, 8)
    batch = Batch(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), index_B, 0, 0, 1)
    loss = task([view_BCHW], batch)["cross_entropy"]
    log_BK = head(encoder(view_BCHW).embedding_BD).log_softmax(1)
    own_B = log_BK[torch.arange(3), target_N[index_B]]
    by_hand = -((1 - smoothing) * own_B + smoothing * log_BK.mean(1)).mean()
    assert torch.allclose(loss, by_hand)


def test_the_setting_of_label_smoothing_reaches_the_loss():
    ends = [
        Finetune(steps=3, batch_size=12, label_smoothing=s).run(color_subject()).details["loss"]
        for s in (0.0, 0.4)
    ]
    assert ends[0] != ends[1]
