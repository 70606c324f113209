import numpy as np
import pytest
import torch
from color_encoders import Colors, color_subject, image_subject, state_of
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional

from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.evaluate.probes import sgd_probe as sgd_probe_module
from ssdistill.evaluate.probes.sgd_heads import Heads
from ssdistill.evaluate.probes.sgd_probe import (
    HeadTraining,
    _choose,
    _scale,
    sgd_probe,
    train_heads,
)
from ssdistill.evaluate.probes.supervised import recipe_for
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.evaluate.protocols.linear_sgd import LinearSGD
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.evaluate.targets import as_probe_data
from ssdistill.settings.registry import PROTOCOLS
from ssdistill.train.optim import learning_rate

PLAIN = {"momentum": 0.9, "schedule": "cosine", "warmup": 0.0, "weight_decay": 0.0}
STEPS_60_80 = {"epochs": 100, "steps": None, "schedule": "step", "milestones": (0.6, 0.8)}
RAW = {"scaling": "raw", "momentum": 0.9, "weight_decay": 0.0, "batch_size": 256}
MOCO = STEPS_60_80 | RAW | {"lrs": (30.0,), "head_init": "normal"}
COMPRESS = {
    "epochs": 40,
    "steps": None,
    "batch_size": 256,
    "lrs": (0.01,),
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "step",
    "milestones": (0.375, 0.75),
    "scaling": "unit_standard",
    "head_init": "uniform",
}
PRESETS = {
    # solo-learn scripts/linear/imagenet-100/byol.yaml and main_linear.py.
    "solo": STEPS_60_80 | RAW | {"lrs": (0.3,), "head_init": "uniform"},
    # lightly 1.6 utils/benchmarking/linear_classifier.py, benchmarks/imagenet/resnet50.
    "lightly": RAW
    | {"epochs": 90, "steps": None, "lrs": (0.1,), "schedule": "cosine", "lr_end": 1e-3},
    # facebookresearch/moco main_lincls.py; arXiv:1911.05722, section 4.1.
    "moco": MOCO,
    # jacobswan1/SEED main_lincls.py.
    "seed": MOCO,
    # UMBCvision/CompRess eval_linear.py: 40 epochs, a tenth at 15 and 30 (and 40, the end).
    "compress": COMPRESS,
    # UCDvision/simreg eval_linear.py: the same.
    "simreg": COMPRESS,
    # facebookresearch/dinov2 dinov2/eval/linear.py: rates times batch size / 256.
    "dinov2": RAW
    | {
        "epochs": None,
        "steps": 12_500,
        "batch_size": 128,
        "lrs": (
            *(lr / 2 for lr in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
            *(0.005, 0.01, 0.025, 0.05),
        ),
        "schedule": "cosine",
        "lr_end": 0.0,
        "head_init": "normal",
    },
}


@pytest.mark.parametrize("preset", LinearSGD.presets)
def test_a_preset_has_the_values_of_its_source(preset):
    made = LinearSGD(preset=preset)
    assert {name: getattr(made, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert made.name == f"linear_sgd_{preset}"


def test_every_preset_can_be_asked_for_in_a_config_and_no_other():
    schema = TypeAdapter(PROTOCOLS.schema("linear_sgd"))
    for preset in LinearSGD.presets:
        settings = schema.validate_python({"preset": preset, "recipe": "digits"})
        made = PROTOCOLS.build(settings)
        assert made.preset == preset
        assert made.recipe == RECIPES["digits"].model_dump()
    with pytest.raises(ValidationError, match="preset"):
        schema.validate_python({"preset": "mocov9"})
    with pytest.raises(ValidationError, match="did you mean 'digits'"):
        schema.validate_python({"recipe": "digit"})


def test_rates_follow_the_batch_size_where_the_source_says_so_and_only_if_not_given():
    assert LinearSGD(preset="lightly", batch_size=64).lrs == (0.025,)
    assert LinearSGD(preset="dinov2", batch_size=256).lrs[-1] == 0.1
    assert LinearSGD(preset="moco", batch_size=64).lrs == (30.0,)
    assert LinearSGD(preset="lightly", batch_size=64, lrs=(0.2,)).lrs == (0.2,)


def test_a_length_replaces_that_of_the_preset_and_two_are_refused():
    made = LinearSGD(preset="dinov2", epochs=2)
    assert (made.epochs, made.steps) == (2, None)
    with pytest.raises(UserError, match="epochs=2 and steps=5 are both set"):
        LinearSGD(epochs=2, steps=5)


def test_a_wrong_recipe_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"recipe: unknown recipe 'crop'"):
        LinearSGD(recipe="crop")
    with pytest.raises(UserError, match=r"recipe\.flip"):
        LinearSGD(recipe={"recipe": "weak", "flip": 2})


def test_colors_far_apart_are_learnt_and_named_by_preset():
    result = LinearSGD(epochs=6, batch_size=30).run(color_subject())
    assert result["top1"] == 100
    assert result.details["n_train"] == 108
    assert result.details["steps"] == 6 * 3
    assert result.details["held_out_top1"].keys() == {0.01, 0.03, 0.1, 0.3, 1.0}
    assert result.details["lr_chosen_on"] == "held-out training labels"
    assert result.classification.class_names == ("r", "g", "b")
    moco = LinearSGD(preset="moco", epochs=6, batch_size=30).run(color_subject())
    assert moco.metrics["probe/linear_sgd_moco/top1"] == 100
    assert (moco.details["n_train"], moco.details["steps"]) == (120, 24)
    assert moco.settings["lrs"] == (30.0,)


def test_the_encoder_and_the_generators_are_left_as_they_were(make_encoder):
    encoder = make_encoder()
    encoder.net.layer1.eval()
    next(encoder.parameters()).requires_grad_(False)
    before = state_of(encoder)
    LinearSGD(epochs=2, batch_size=16).run(image_subject(encoder))
    assert state_of(encoder) == before


def test_an_encoder_that_is_a_mere_function_is_judged_the_same():
    network, results = Colors(), []

    @torch.inference_mode()
    def runtime(x_BCHW):
        return network(x_BCHW)

    for encoder in (network, runtime):
        results.append(LinearSGD(epochs=3).run(color_subject(encoder=encoder, spread=60.0)))
    first, second = (r.arrays["weight_KD"] for r in results)
    torch.testing.assert_close(first, second)


def test_a_long_training_on_whole_images_is_logistic_regression():
    """Full batches, no penalty: within 1e-3 of the optimum in every probability."""
    subject = color_subject(spread=60.0)
    logistic = linear_probe(*subject.probe_data(), strengths=(1e-9,))
    how = HeadTraining(PLAIN, RECIPES["eval"], 120, steps=150, scaling="standard")
    probe = sgd_probe(subject, (2.0,), how)
    assert 60 < logistic.top1 < 95
    np.testing.assert_allclose(probe.probabilities_NK, logistic.probabilities_NK, atol=1e-3)


def test_heads_trained_at_once_are_those_trained_alone():
    subject = color_subject(spread=60.0)
    train_ND, target_N, _, _, _ = as_probe_data(*subject.probe_data())
    rows_M = torch.arange(0, 120, 2)
    lrs = LinearSGD(preset="dinov2", batch_size=256 * 40).lrs
    how = HeadTraining(PLAIN, RECIPES["weak"], 20, steps=4, head_init="normal", seed=3)
    together, _ = train_heads(subject, train_ND, target_N, rows_M, lrs, how)
    for number, lr in enumerate(lrs):
        alone, _ = train_heads(subject, train_ND, target_N, rows_M, (lr,), how)
        torch.testing.assert_close(together.weights[number], alone.weights[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.biases[number], alone.biases[0], rtol=1e-4, atol=1e-6)
    assert (together.weights[0] - together.weights[-1]).abs().max() > 0.1


def test_the_test_images_have_no_say_in_the_choice():
    protocol = LinearSGD(epochs=2, batch_size=20, lrs=(1e-5, 0.01, 1.0), scaling="raw")
    subject = color_subject(spread=60.0)
    rng = np.random.default_rng(5)
    noise = LabeledImages(
        rng.integers(0, 256, subject.test.images.shape).astype(np.uint8),
        rng.permutation(subject.test.labels),
    )
    other = Subject(subject.encoder, subject.train, noise, progress=False)
    first, second = protocol.run(subject), protocol.run(other)
    assert first.details["lr"] == second.details["lr"]
    assert first.details["held_out_top1"] == second.details["held_out_top1"]
    assert torch.equal(first.arrays["weight_KD"], second.arrays["weight_KD"])
    assert first["top1"] > second["top1"]
    assert first.details["held_out_top1"][first.details["lr"]] == max(
        first.details["held_out_top1"].values()
    )


def test_a_rate_is_chosen_on_labels_that_no_head_has_learnt_from():
    """Where labels are noise a large rate remembers those it saw and knows nothing of the rest."""
    generator = torch.Generator().manual_seed(0)
    train_ND = torch.randn(60, 40, generator=generator)
    target_N = torch.randint(0, 2, (60,), generator=generator)
    held_N = torch.arange(60) % 3 == 0
    heads = Heads(2, torch.zeros(2, 40), torch.zeros(2), None, None)
    learnt_N = 2.0 * target_N[~held_N] - 1
    with torch.no_grad():
        fitted_D = torch.linalg.lstsq(train_ND[~held_N], learnt_N[:, None]).solution[:, 0]
        heads.weights[0][:] = torch.stack([-fitted_D, fitted_D])
        truth_D = torch.linalg.lstsq(train_ND[held_N], 2.0 * target_N[held_N, None] - 1).solution
        heads.weights[1][:] = torch.stack([-truth_D[:, 0], truth_D[:, 0]])
    by_hand = [
        100 * float((heads(train_ND[held_N])[:, p].argmax(1) == target_N[held_N]).float().mean())
        for p in range(2)
    ]
    best, held_out_top1 = _choose(heads, train_ND, target_N, held_N, (1.0, 0.1))
    assert best == 1 and by_hand[1] == 100 > by_hand[0]
    assert held_out_top1 == pytest.approx({1.0: by_hand[0], 0.1: by_hand[1]})


def test_the_held_out_accuracy_is_that_of_the_heads_on_the_held_out_images(monkeypatch):
    subject, seen = color_subject(spread=60.0), []

    def choose(heads, train_ND, target_N, held_N, lrs):
        found = _choose(heads, train_ND, target_N, held_N, lrs)
        hit_NP = heads(train_ND).argmax(2) == target_N[:, None]
        seen.append((held_N, 100 * hit_NP[held_N].double().mean(0), found[1]))
        return found

    trained, train = [], sgd_probe_module.train_heads

    def note_rows(subject, train_ND, target_N, rows_M, lrs, how):
        trained.append(rows_M)
        return train(subject, train_ND, target_N, rows_M, lrs, how)

    monkeypatch.setattr(sgd_probe_module, "_choose", choose)
    monkeypatch.setattr(sgd_probe_module, "train_heads", note_rows)
    LinearSGD(epochs=2, batch_size=20, lrs=(1e-3, 0.1)).run(subject)
    ((held_N, by_hand_P, held_out_top1),) = seen
    assert held_N.sum() == 12 and not held_N[trained[0]].any()
    assert list(held_out_top1.values()) == pytest.approx(by_hand_P.tolist())


@pytest.mark.parametrize("preset", [None, *LinearSGD.presets])
def test_a_linear_probe_starts_at_the_full_rate(monkeypatch, preset):
    seen = []

    def fit(task, subject, rows_M, how, optim, **more):
        seen.append(optim)
        return []

    monkeypatch.setattr(sgd_probe_module, "fit_with_labels", fit)
    made = LinearSGD(preset=preset, steps=10, batch_size=20)
    made.run(color_subject())
    (optim,) = seen
    assert optim.warmup == 0 and optim.lr == max(made.lrs)
    assert learning_rate(optim, 0, 10) == pytest.approx(max(made.lrs))


def test_crops_are_seen_in_training_and_the_seed_decides_which():
    subject = image_subject(lambda x_BCHW: Colors()(x_BCHW * x_BCHW[:, :, :, :1]))
    weights = [
        LinearSGD(lrs=(0.1,), steps=3, recipe=recipe, seed=seed).run(subject).arrays["weight_KD"]
        for recipe, seed in ((None, 0), (None, 0), (None, 1), ("eval", 0))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    assert not torch.allclose(weights[0], weights[3])


def test_features_of_length_one_are_standardized_as_compress_does():
    z_ND = torch.randn(3000, 700, generator=torch.Generator().manual_seed(0)) * 3 + 1
    unit_ND = functional.normalize(z_ND.double())
    var_D, mean_D = torch.var_mean(unit_ND, dim=0)
    expected = (unit_ND - mean_D) / (var_D + 1e-5).sqrt()
    heads = Heads(1, torch.eye(700), torch.zeros(700), *_scale(z_ND, "unit_standard"), unit=True)
    torch.testing.assert_close(heads(z_ND)[:, 0].double(), expected, rtol=1e-4, atol=1e-4)


def test_digits_are_neither_mirrored_nor_cropped_tightly():
    subject = color_subject()
    assert recipe_for(subject, None) == RECIPES["crop_flip"]
    assert (RECIPES["crop_flip"].scale, RECIPES["crop_flip"].flip) == ((0.08, 1.0), 0.5)
    subject.train.__dict__["source"] = type("Digits", (), {"default_recipe": "digits"})
    gentle = recipe_for(subject, None)
    assert (gentle.flip, gentle.scale, gentle.jitter) == (0.0, (0.5, 1.0), 0.0)


def test_an_encoder_that_says_one_thing_of_all_is_judged_at_chance():
    subject = color_subject(encoder=lambda x_BCHW: Colors()(torch.ones_like(x_BCHW)))
    assert LinearSGD(steps=30, batch_size=30).run(subject)["top1"] == pytest.approx(100 / 3)


def test_too_few_labels_to_choose_are_refused():
    with pytest.raises(UserError, match="one training label only, so no learning rate"):
        LinearSGD().run(color_subject(n_train=3))
