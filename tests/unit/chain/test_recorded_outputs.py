"""A distillation from recorded outputs is the live one on the same views."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdistill.chain import recorded_outputs
from ssdistill.chain.checks import check_trainings
from ssdistill.chain.plan import models_of
from ssdistill.chain.recorded_outputs import time_without_teachers, use_recorded_outputs
from ssdistill.chain.tasks import build_distiller, fresh_encoder
from ssdistill.chain.training import prepare
from ssdistill.data.opening import open_originals
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.distill.cache.layout import Layout
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.loop import fit
from ssdistill.train.observers import Observer

FIXED = "device={precision: fp32, memory_format: contiguous, accelerator: cpu}"
TWO_PASSES = "distill.cache={views: 2}"
FIVE_EPOCHS = "distill={steps: null, epochs: 5}"


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(
        recorded_outputs.console, "print", lambda text, **_: lines.append(str(text).strip())
    )
    return lines


@pytest.fixture
def originals(tmp_path):
    for number in range(26):
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 256, (20 + number % 3, 24, 3), dtype=np.uint8)
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{number:02}.png")
    source, settings = Folder(path=str(tmp_path / "set"), test_fraction=0), StoreSettings()
    settings = settings.model_copy(update={"pixels": "original"})
    return open_originals(source, "train", settings, 16, tmp_path / "data")


class Losses:
    """Losses of every step of a training, and the weights it ends with."""

    def __init__(self):
        self.values, self.weights, self.seen = [], {}, 0

    def record(self, task):
        forward = task.forward

        def recording(views, batch):
            losses = forward(views, batch)
            self.values.append({name: float(loss.detach()) for name, loss in losses.items()})
            return losses

        task.forward = recording
        for teacher in task.teachers.values():
            teacher.register_forward_hook(lambda *_: setattr(self, "seen", self.seen + 1))


def training_of(workspace, cached=True, changed=None):
    """The distillation of seed 0; replays views either way, as its settings have it."""
    models = models_of(workspace, 0)
    stage = models["distilled"]
    roles = list(stage.parents)
    teachers = {role: fresh_encoder(models[role]) for role in roles}
    for number, teacher in enumerate(teachers.values()):
        torch.manual_seed(100 + number)
        for parameter in teacher.net.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    settings = DistillSettings.model_validate(stage.config["training"])
    task = build_distiller(fresh_encoder(stage), teachers, settings, stage, workspace)
    if cached:
        time_without_teachers(task)
    training, fabric = prepare(task, settings, stage, workspace)
    training.progress = False
    for key, value in (changed or {}).items():
        setattr(training, key, value)
    if cached:
        use_recorded_outputs(training, fabric, workspace)
    return training, fabric


def trained(workspace, folder, cached=True, observers=(), changed=None, source=None):
    training, fabric = training_of(workspace, cached, changed)
    if source is not None:
        training.task.source = source
    losses = Losses()
    losses.record(training.task)
    facts = {"digest": "d" * 64, "seed": 0, "name": "tiny", "group": "tiny", "profile": "smoke"}
    facts |= {"fingerprint": "f" * 64, "parents": {}, "config": {}}
    run = Run(folder, stage="distill", kind="distilled", **facts)
    with Tracker(run, TrackingSettings(wandb="disabled")) as tracker:
        fit(training, fabric, tracker, observers=observers)
    losses.weights = {k: v.clone() for k, v in training.task.encoder.state_dict().items()}
    return losses


def difference(first, second):
    """Largest difference of any loss at any step, relative to the loss."""
    assert len(first.values) == len(second.values)
    pairs = zip(first.values, second.values, strict=True)
    return max(abs(a[n] - b[n]) / abs(b[n]) for a, b in pairs for n in b)


CASES = {
    "embedding": [],
    "several": [
        "teachers={one: {}, two: {}}",
        "distill.losses={feature: {kind: simreg}, contrast: null}",
    ],
    "maps": ["distill.losses={maps: {kind: fitnet}, contrast: null}"],
    "rotations": ["distill.losses={rotated: {kind: sskd}, contrast: null}"],
    "one view": [
        "distill.losses={feature: {kind: simreg, pairs: [[0, 1]]}}",
        "distill.views=[weak, strong]",
    ],
    "multi-crop": [
        "distill.views=[strong, strong, {recipe: weak, size: 8}]",
        "distill.losses={feature: {kind: simreg, pairs: other}, contrast: null}",
    ],
}
WAYS = pytest.mark.parametrize("case", CASES)


@WAYS
def test_losses_are_those_of_the_live_teacher_on_the_same_views(
    make_workspace, tmp_path, said, case
):
    workspace = make_workspace(FIXED, FIVE_EPOCHS, TWO_PASSES, *CASES[case])
    live = trained(workspace, tmp_path / "live", cached=False)
    cached = trained(workspace, tmp_path / "cached")
    assert len(live.values) == 15 and live.seen > 0 and cached.seen == 0
    assert difference(cached, live) < 5e-3
    # Views that go on being new make a difference.
    new = trained(workspace, tmp_path / "new", cached=False, changed={"passes": None})
    assert difference(new, live) > 0.01


class Rounded:
    """Live outputs, rounded as recorded ones are."""

    def __call__(self, teacher, live, batch):
        outputs = live()
        layout = Layout.of(outputs)
        return layout.unpack(torch.from_numpy(layout.pack(outputs, teacher)))


@WAYS
def test_all_that_is_lost_is_the_rounding(make_workspace, tmp_path, said, case):
    workspace = make_workspace(FIXED, FIVE_EPOCHS, TWO_PASSES, *CASES[case])
    rounded = trained(workspace, tmp_path / "live", cached=False, source=Rounded())
    cached = trained(workspace, tmp_path / "cached")
    assert difference(cached, rounded) < 1e-5
    for name, weight in rounded.weights.items():
        assert torch.allclose(cached.weights[name], weight, rtol=1e-4, atol=1e-5), name


def test_outputs_in_bfloat16_lose_nothing(make_workspace, tmp_path, said):
    workspace = make_workspace(
        "device={precision: bf16, memory_format: channels_last, accelerator: cpu}",
        *(FIVE_EPOCHS, TWO_PASSES),
    )
    live = trained(workspace, tmp_path / "live", cached=False)
    assert trained(workspace, tmp_path / "cached").values == live.values


def test_originals_are_cut_as_in_the_training(make_workspace, tmp_path, originals, said):
    workspace = make_workspace(FIXED, FIVE_EPOCHS, TWO_PASSES)
    workspace.train = originals
    live = trained(workspace, tmp_path / "live", cached=False)
    assert difference(trained(workspace, tmp_path / "cached"), live) < 2e-3


def test_images_drawn_by_weight_repeat_their_views(make_workspace, tmp_path, said):
    workspace = make_workspace(FIXED, FIVE_EPOCHS, TWO_PASSES)
    workspace.train.weights = np.linspace(1, 5, len(workspace.train))
    live = trained(workspace, tmp_path / "live", cached=False)
    assert difference(trained(workspace, tmp_path / "cached"), live) < 2e-3


class Interrupt(Observer):
    name = "interrupt"

    def after_step(self, step, batch, task):
        if step == 7:
            raise RuntimeError("killed")
        return {}

    def after_training(self, task):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_resumed_training_has_the_same_weights(make_workspace, tmp_path, said):
    workspace = make_workspace(FIXED, FIVE_EPOCHS, TWO_PASSES)
    whole = trained(workspace, tmp_path / "whole")
    often = {"checkpoint_seconds": -1.0}
    with pytest.raises(RuntimeError, match="killed"):
        trained(workspace, tmp_path / "killed", observers=[Interrupt()], changed=often)
    resumed = trained(workspace, tmp_path / "killed")
    assert len(resumed.values) == 8
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


def test_students_share_what_is_recorded(make_workspace, tmp_path, said):
    trained(make_workspace(FIXED, TWO_PASSES), tmp_path / "one")
    (line,) = (line for line in said if line.startswith("recording"))
    assert "24 images, 2 passes, 3,072 bytes" in line
    narrow = "student.encoder.args.channels=[4, 4, 4, 4]"
    other_loss = "distill.losses={feature: null, far: {kind: cosine}}"
    trained(make_workspace(FIXED, TWO_PASSES, narrow, other_loss), tmp_path / "two")
    assert len([line for line in said if line.startswith("recording")]) == 1
    assert len([line for line in said if "are read from" in line]) == 2
    assert said[-1].endswith("3.07 kB, 2 passes") and said[-1].startswith("outputs of 'teacher'")


def test_more_passes_are_added_and_fewer_are_those_of_more(make_workspace, tmp_path, said):
    trained(make_workspace(FIXED, TWO_PASSES), tmp_path / "one")
    trained(make_workspace(FIXED, "distill.cache={views: 3}"), tmp_path / "two")
    trained(make_workspace(FIXED, "distill.cache={views: 1}"), tmp_path / "three")
    assert len(list((tmp_path / "runs" / "teacher_outputs").iterdir())) == 1
    recording = [line for line in said if line.startswith("recording")]
    assert len(recording) == 2 and recording[1].endswith("3 passes, 4,608 bytes; 67% are there")
    assert said[-1].endswith("1.54 kB, 1 pass")


def test_other_views_are_recorded_elsewhere_and_said(make_workspace, tmp_path, said):
    trained(make_workspace(FIXED, TWO_PASSES), tmp_path / "one")
    recipes = "distill.views=[weak, weak]"
    trained(make_workspace(FIXED, TWO_PASSES, recipes), tmp_path / "two")
    (line,) = (line for line in said if "not used" in line)
    assert line.endswith("of the same teacher, not used: other views")
    assert len(list((tmp_path / "runs" / "teacher_outputs").iterdir())) == 2


def test_the_timing_of_steps_encodes_once(make_workspace, said):
    workspace = make_workspace("device={accelerator: cpu, precision: fp32}", TWO_PASSES)
    stage = models_of(workspace, 0)["distilled"]
    settings = DistillSettings.model_validate(stage.config["training"])
    teacher = fresh_encoder(models_of(workspace, 0)["teacher"])
    task = build_distiller(fresh_encoder(stage), {"teacher": teacher}, settings, stage, workspace)
    time_without_teachers(task)
    prepare(task, settings, stage, workspace)
    (entry,) = (workspace.root / "machine").glob("*")
    assert '"teachers": "recorded"' in entry.read_text()


def digests(workspace):
    return {role: stage.digest for role, stage in models_of(workspace, 0).items()}


def test_without_a_cache_no_hash_changes_and_with_one_those_of_students_do(make_workspace):
    plain = make_workspace(FIXED)
    assert "cache" not in models_of(plain, 0)["distilled"].config["training"]
    assert digests(make_workspace(FIXED, "distill.cache=null")) == digests(plain)
    cached = digests(make_workspace(FIXED, TWO_PASSES))
    changed = {role for role, digest in digests(plain).items() if cached[role] != digest}
    assert {"distilled", "recovered"} <= changed and not {"teacher", "untrained"} & changed
    assert (
        cached["distilled"] != digests(make_workspace(FIXED, "distill.cache.views=3"))["distilled"]
    )


def test_a_recovery_encodes_every_batch(make_workspace):
    stage = models_of(make_workspace(FIXED, TWO_PASSES), 0)["recovered"]
    assert "cache" not in stage.config["distill"]["training"]


REFUSED = {
    "mix": ("distill.mix={kind: mixup}", r"distill\.cache: mixed views .*mix=null"),
    "neighbors": (
        "distill.losses.bag={kind: bingo}",
        r"distill\.cache: losses\.bag reads views of neighbors \(cutmix\).*remove the loss",
    ),
    "momentum": (
        "distill.losses.own={kind: isd, target: momentum, pairs: same}",
        r"losses\.own\.target=momentum learns from the student's moving average.*target=teacher",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_requires_live_teachers_is_refused_in_one_line(make_workspace, case):
    override, message = REFUSED[case]
    check_trainings(make_workspace(FIXED, override))
    with pytest.raises(UserError, match=message) as refusal:
        check_trainings(make_workspace(FIXED, TWO_PASSES, override))
    assert "\n" not in str(refusal.value)


def test_large_maps_are_refused(make_workspace, monkeypatch):
    workspace = make_workspace(FIXED, TWO_PASSES, "distill.losses.maps={kind: fitnet}")
    check_trainings(workspace)
    monkeypatch.setattr("ssdistill.distill.cache.rules.LARGEST_MAPS", 100)
    with pytest.raises(UserError, match=r"losses\.maps reads feature maps of [\d,]+ bytes per im"):
        check_trainings(workspace)


def test_what_will_be_written_is_said_before(make_workspace, tmp_path):
    lines = check_trainings(make_workspace(FIXED, TWO_PASSES))
    (line,) = (line for line in lines if "records up to" in line)
    assert "distill.cache.views=2: a run records up to 3.07 kB per seed" in line
    assert str(tmp_path / "runs" / "teacher_outputs") in line and "64 bytes per image" in line
    # Six steps of eight images are two passes over 24.
    assert any("the training takes 2 passes over the images; recording pays" in x for x in lines)
    longer = check_trainings(make_workspace(FIXED, TWO_PASSES, FIVE_EPOCHS))
    assert not any("recording pays" in line for line in longer)
    assert not any("cache" in line for line in check_trainings(make_workspace(FIXED)))
    finished = check_trainings(make_workspace(FIXED, TWO_PASSES), finished=["distilled"])
    assert not any("cache" in line for line in finished)


def test_a_disk_that_is_too_small_is_said_before_anything_is_trained(make_workspace, monkeypatch):
    usage = type("Usage", (), {"free": 3000})
    monkeypatch.setattr("ssdistill.distill.cache.parts.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"distill\.cache: recorded outputs .* are free in"):
        check_trainings(make_workspace(FIXED, TWO_PASSES))
