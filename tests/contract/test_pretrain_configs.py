"""Published recipes: every method has one for every data set, cites its source, and trains."""

import math
from pathlib import Path

import pytest
import torch

from ssdistill.data.loader import Loader
from ssdistill.data.recipes import expand
from ssdistill.experiment.reading import load_experiment
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import METHODS
from ssdistill.train.loop import Training
from ssdistill.train.optim import build_optimizer, learning_rate, set_rates

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
DATA = ("cifar10", "cifar100", "stl10", "imagenet100", "imagenet")
FILES = sorted(FOLDER.rglob("*.yaml"))
SOLO_LEARN = [
    path
    for path in FILES
    if path.stem in ("cifar10", "imagenet100") and path.parent.name not in ("autoencoder", "lejepa")
]
SMALL = {
    "projector": ("hidden_dim=16", "output_dim=16"),
    "predictor": ("hidden_dim=16",),
    "queue": ("=32",),
    "num_prototypes": ("=24",),
    "decoder_dim": ("=16",),
    "decoder_depth": ("=1",),
    "decoder_heads": ("=2",),
    "decoder_width": ("=16",),
}
"""What makes a method's own settings small, by setting."""


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def head_of(path):
    """The comment a file starts with, on one line."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


@pytest.mark.parametrize("kind", METHODS.classes)
def test_every_method_has_a_recipe_for_every_data_set(kind):
    more = {"imagenette"} if kind == "lejepa" else set()
    assert {path.stem for path in (FOLDER / kind).glob("*.yaml")} == {*DATA, *more}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_is_what_its_place_says(path):
    experiment, notices = load_experiment(path)
    assert notices == []
    assert experiment.name == f"{path.parent.name}_{path.stem}"
    assert experiment.pretrain.kind == path.parent.name
    folders = dict.fromkeys(("imagenet100", "imagenet", "imagenette"), "folder")
    assert experiment.data.kind == folders.get(path.stem, path.stem)
    assert experiment.distill is None and experiment.student is None and experiment.control is None


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem in ("imagenet", "imagenet100")], ids=name_of
)
def test_imagenet_is_resized_to_256_pixels_and_seen_at_224(path):
    data = load_experiment(path)[0].data
    assert (data.image_size, data.view_size, data.resize) == (256, 224, "crop")
    assert data.form.seen(data.image_size) == 224 and data.pixels == "original"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_names_its_source_or_says_that_it_has_none(path):
    experiment, _ = load_experiment(path)
    head = head_of(path)
    published = experiment.profile == "paper"
    assert ("Published: " in head) == published
    assert ("Our choice: " in head) != published
    assert (experiment.paper is not None) == published
    if published:
        assert experiment.paper.arxiv and experiment.paper.deviations
        assert any(name in head for name in ("solo-learn", "lightly", "the authors", "the paper"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_warms_up_for_whole_epochs_and_leaves_no_view_to_chance(path):
    pretrain = load_experiment(path)[0].pretrain
    warmup_epochs = pretrain.optim.warmup * pretrain.epochs
    assert warmup_epochs == pytest.approx(round(warmup_epochs))
    views = expand(pretrain.views)
    method = METHODS[pretrain.kind]
    assert len(views) == len(method.recipes) or (method.multicrop and len(views) > 2)


@pytest.mark.parametrize("path", SOLO_LEARN, ids=name_of)
def test_the_warm_up_of_solo_learn_starts_at_its_fixed_rate(path):
    optim = load_experiment(path)[0].pretrain.optim
    first = 0.0 if name_of(path) == "mae/imagenet100" else 3e-5
    assert learning_rate(optim, 0, 10_000) == pytest.approx(first)


@pytest.mark.parametrize("kind, count, small", [("swav", 8, 6), ("dino", 10, 8)])
def test_imagenet_recipes_with_multi_crop_have_the_published_crops(kind, count, small):
    views = expand(load_experiment(FOLDER / kind / "imagenet.yaml")[0].pretrain.views)
    assert len(views) == count
    assert [view.size for view in views] == [None] * (count - small) + [96] * small


def tiny_encoder(kind, make_encoder):
    if kind != "mae":
        return make_encoder()
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)


def small_settings(path):
    known = METHODS.schema(path.parent.name).model_fields
    overrides = [
        f"pretrain.{name}{change if change[0] == '=' else '.' + change}"
        for name, changes in SMALL.items()
        if name in known
        for change in changes
    ]
    return load_experiment(path, overrides)[0].pretrain


@pytest.mark.parametrize("kind", METHODS.classes)
def test_two_steps_of_a_recipe_move_a_small_encoder(kind, make_encoder, make_store):
    torch.manual_seed(0)
    settings = small_settings(FOLDER / kind / "cifar10.yaml")
    task = METHODS.build(settings, tiny_encoder(kind, make_encoder)).train()
    loader = Loader(make_store(), 8, seed=0, num_steps=2)
    training = Training(task, loader, expand(settings.views), settings.optim, seed=0)
    before = {name: p.detach().clone() for name, p in task.encoder.named_parameters()}
    optimizer = build_optimizer(task, settings.optim)
    for batch in loader.iterate(0):
        # As late as the warm-up's end: at its start the rate is nearly 0.
        set_rates(optimizer, settings.optim, 100 + batch.step, 1000)
        losses = task(training.views(batch), batch)
        assert all(math.isfinite(loss.item()) for loss in losses.values())
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(batch.step, batch.num_steps)
    moved = [
        name for name, p in task.encoder.named_parameters() if not torch.equal(p, before[name])
    ]
    assert len(moved) > len(before) / 2
