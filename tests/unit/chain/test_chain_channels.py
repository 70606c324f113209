"""Trainings on images of five channels and two sides: their configs, trial steps and images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.chain import run, trial_step
from ssdistill.chain import training as training_module
from ssdistill.chain.evaluation import of_views
from ssdistill.chain.observers import _criterion
from ssdistill.chain.stage_configs import distillation_config, pretraining_config
from ssdistill.chain.trial_step import check_step
from ssdistill.chain.view_recipes import resolve_recipes
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.errors import UserError
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.experiment.sections import DistillSettings
from ssdistill.models.backbones import EncoderSettings
from ssdistill.models.representation import Representation
from ssdistill.settings.registry import METHODS

SIZE, SOURCE = (12, 20), SimpleNamespace(default_recipe=None)
BANDS = RECIPES["strong"].for_channels(5)


class Pictures(SimpleNamespace):
    def __len__(self):
        return len(self.images)

    def displayed(self, images_NHWC):
        self.seen = images_NHWC
        return (255 * images_NHWC[..., :3]).astype(np.uint8)


def images_of(channels=5, names=None, dtype=np.float32):
    pixels = np.random.default_rng(0).random((8, *SIZE, channels), dtype=np.float32)
    pixels = pixels if dtype == np.float32 else (255 * pixels).astype(dtype)
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return Pictures(images=pixels, channel_names=names, **statistics)


def workspace_of(images=None, source=SOURCE):
    images = images or images_of()
    device = SimpleNamespace(precision="fp32", memory_format="auto")
    return SimpleNamespace(
        train=images,
        test=images,
        source=source,
        image_size=SIZE,
        experiment=SimpleNamespace(device=device),
        spec=lambda settings: SimpleNamespace(model_dump=lambda mode: {}),
    )


class Pairs(nn.Module):
    """A task that notes the shapes it is given."""

    num_views, extra_views = 2, ()

    def __init__(self, channels=5, input_size=None, extra_views=()):
        super().__init__()
        spec = SimpleNamespace(mean=(0.5,) * channels, input_size=input_size)
        self.encoder, self.extra_views, self.seen = SimpleNamespace(spec=spec), extra_views, None

    def forward(self, views, batch):
        self.seen = [tuple(view.shape) for view in views]
        if batch.images_BHWC is not None:
            self.seen.append(tuple(batch.images_BHWC.shape))
        return {"loss": views[0].mean()}


def test_a_step_is_tried_with_the_channels_of_the_network_and_both_sides():
    task = Pairs(extra_views=("neighbor_0", "neighbor_1"))
    small = BANDS.model_copy(update={"size": (6, 9)})
    assert check_step(task, Pairs, (BANDS, small), SIZE, 1, "distill") == []
    views = [(1, 5, 12, 20), (1, 5, 6, 9), (1, 5, 12, 20), (1, 5, 6, 9)]
    assert task.seen == [*views, (1, 12, 20, 5)]


@pytest.mark.parametrize("channels, refused", [(3, False), (30, True)])
def test_memory_is_counted_by_channel(channels, refused, monkeypatch):
    # Two views of ten images: 4 bytes a number.
    monkeypatch.setattr(trial_step, "memory_bytes", lambda: 4 * 3 * 10 * 2 * 12 * 20)
    if not refused:
        assert check_step(Pairs(channels), Pairs, (BANDS, BANDS), SIZE, 10, "distill") == []
        return
    with pytest.raises(UserError, match=r"^distill: 2 views of 10 images need"):
        check_step(Pairs(channels), Pairs, (BANDS, BANDS), SIZE, 10, "distill")


@pytest.mark.parametrize(
    "input_size, seen",
    [(None, [(12, 20), 6]), (16, [(16, 20), 16]), ((8, 30), [(12, 30), (8, 30)])],
)
def test_networks_that_resize_see_more_pixels(input_size, seen):
    assert trial_step._seen_sizes(Pairs(input_size=input_size), [SIZE, 6]) == [SIZE, 6]
    encoder = nn.Identity()
    encoder.spec = SimpleNamespace(input_size=input_size)
    task = nn.Module()
    task.inner = encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_step, "Encoder", nn.Identity)
        assert trial_step._seen_sizes(task, [SIZE, 6]) == seen


def test_rotated_views_that_are_no_squares_are_refused_before_training():
    task = Pairs(extra_views=("rotated_90",))
    with pytest.raises(UserError, match=r"^distill.views: rotated_90 requires a square"):
        check_step(task, Pairs, (BANDS, BANDS), SIZE, 1, "distill")


def test_recipes_are_resolved_for_the_images():
    resolved = resolve_recipes(None, ("strong", "weak"), SOURCE, images_of())
    assert resolved == (BANDS, RECIPES["weak"].for_channels(5))
    own = ViewRecipe(hue=0.1, jitter=1.0, brightness=0.2)
    assert resolve_recipes((own,), (), SOURCE, images_of(3)) == (own,)
    (changed,) = resolve_recipes((own,), (), SOURCE, images_of(3, ("a", "b", "c")))
    assert (changed.hue, changed.noise, changed.channels) == (0, 0.1, 3)


def test_configs_hold_the_resolved_views_and_those_of_rgb_stay_as_they_were():
    losses = {"a": {"kind": "simreg"}}
    settings = DistillSettings(steps=1, losses=losses)
    views = distillation_config(workspace_of(), settings, "distill")["views"]
    assert views == [BANDS.model_dump(mode="json")] * len(views)
    assert views[0]["channels"] == 5 and views[0]["noise"] == 0.1
    old = distillation_config(workspace_of(images_of(3)), settings, "distill")["views"]
    assert not {"channels", "noise", "drop"} & set(old[0]) and old[0]["hue"] == 0.1


@pytest.mark.parametrize(
    "sizes, fits", [(((12, 20), (6, 9)), True), (((6, 20), (12, 20)), False), ((None, 14), False)]
)
def test_the_first_views_of_a_method_are_of_full_size(sizes, fits):
    views = [BANDS.model_copy(update={"size": size}) for size in (sizes[0], *sizes)]
    settings = METHODS.schema("swav").model_validate({"steps": 1, "views": views})
    arguments = workspace_of(), EncoderSettings(), settings, "pretrain"
    if fits:
        written = [view["size"] for view in pretraining_config(*arguments)["views"]]
        assert written == [[12, 20], [12, 20], [6, 9]]
        return
    with pytest.raises(UserError, match="the first 2 of swav are of full size"):
        pretraining_config(*arguments)


@pytest.mark.parametrize(
    "channels, names, dtype, own",
    [(5, None, np.float32, True), (5, None, np.uint8, True), (3, ("a", "b", "c"), np.uint8, True),
     (3, None, np.float32, True), (3, None, np.uint8, False)],
)  # fmt: skip
def test_views_are_shown_by_the_images_themselves(channels, names, dtype, own):
    images, view_BCHW = images_of(channels, names, dtype), torch.rand(9, channels, *SIZE)
    shown = training_module._first_images(view_BCHW, 14, 20, images)
    assert shown.shape == (8, 14, 20, 3) and shown.dtype == np.uint8
    assert (shown[:, 12:] == 255).all()
    if own:
        assert images.seen.dtype == dtype and images.seen.shape == (8, *SIZE, channels)
    else:
        rounded = view_BCHW[:8].mul(255).round().permute(0, 2, 3, 1).numpy()
        assert not hasattr(images, "seen") and np.array_equal(shown[:, :12], rounded)


def test_label_free_metrics_look_at_views_that_suit_the_channels(monkeypatch):
    def encode(x_BCHW):
        return Representation(x_BCHW.flatten(1) - 0.5)

    workspace = workspace_of()
    images = LabeledImages(workspace.test.images, None)
    subject = Subject(encode, images, images, image_size=SIZE, progress=False)
    found = of_views(subject, workspace, slice(0, 8))
    assert found["collapse/alignment"] > 0 and 1 < found["collapse/lidar"] <= 8
    workspace.train.mean = (0.5,) * 5
    stage = SimpleNamespace(seed=0)
    assert _criterion("lidar", stage, workspace).recipe == BANDS


@pytest.mark.parametrize("channels, said", [(5, True), (3, False)])
def test_what_is_replaced_is_said_once(channels, said, monkeypatch):
    workspace = workspace_of(images_of(channels), SimpleNamespace(description="bands"))
    workspace.image_size, workspace.classes, workspace.warnings = 12, None, []
    lines = []
    monkeypatch.setattr(run.console, "print", lambda line, **style: lines.append(line))
    run.describe_data(workspace)
    assert [line for line in lines if "saturation" in line] == (
        ["5 channels: saturation, hue and grayscale mean nothing there and are replaced by noise "
         "and channel dropping"] if said else []
    )  # fmt: skip
