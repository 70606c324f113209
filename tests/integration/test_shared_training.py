"""A training shared by two processes is that of one: the whole loop, with batch normalization.

MoCo is without its groups of a batch, which each process forms of its own images.

Every method, and for every family of losses some; each loss and method by itself is in
``test_losses_distributed.py`` and ``test_methods_distributed.py``.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import run_together
from lightning_fabric.plugins.environments import LightningEnvironment

from ssdistill.chain.tasks import assemble
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES, resolve_recipe
from ssdistill.distributed import ASSEMBLED, rank, world_size
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings
from ssdistill.label_free.features import extract
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder
from ssdistill.models.representation import Representation
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.registry import LOSSES as LOSSES_BY_KIND
from ssdistill.settings.registry import METHODS
from ssdistill.train.fabric import build_fabric, fabric_of_processes
from ssdistill.train.loop import Training, fit
from ssdistill.train.observers import Observer
from ssdistill.train.optim import OptimSettings
from ssdistill.train.seeding import seed_generators
from ssdistill.train.selection import Lidar, Selection
from ssdistill.train.sharding import is_sharded, shard_teachers
from ssdistill.train.task import Task
from ssdistill.train.watch import AgreementWatch, as_in_first

WORLD, BATCH, IMAGES, STEPS, SIZE = 2, 16, 48, 50, 16
HEAD = {"hidden_dim": 16, "output_dim": 8}
PREDICTOR = {"hidden_dim": 16}
METHOD_SETTINGS = {
    "simclr": {"projector": HEAD, "temperature": 0.5},
    "byol": {"projector": HEAD, "predictor": PREDICTOR},
    "moco": {"projector": HEAD, "queue": 32, "bn_splits": 1},
    "moco_v3": {"projector": HEAD, "predictor": PREDICTOR},
    "simsiam": {"projector": HEAD, "predictor": PREDICTOR},
    "nnclr": {"projector": HEAD, "predictor": PREDICTOR, "queue": 32},
    "barlow_twins": {"projector": HEAD},
    "vicreg": {"projector": HEAD},
    "swav": {"projector": HEAD, "num_prototypes": 12},
    "dino": {"projector": HEAD, "num_prototypes": 12},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "autoencoder": {"decoder_width": 16},
}
LOSSES = ("at", "reviewkd", "infonce", "crd", "rkd", "seed", "simreg", "unic", "dino", "koleo")
STRICT_STEPS = {"barlow_twins": 5}
"""Steps after which rounding errors have grown: where dimensions are divided by standard
deviations that are almost 0."""
SEEDS = {"simreg": 4}
"""Of a student in which no unit comes within rounding errors of 0, where the derivative of ReLU
jumps: with seed 0 one does in step 20, on processors without AVX-512."""
SHORT_STEPS = 8
LONG = ("simclr", "moco", "byol", "swav", "infonce", "crd", "rkd", "simreg", "unic", "dino")
MEASURED = ("grad/", "select/", "agree/", "collapse/sample/")
PARTS = "gradients of parts"
"""Of each process's images, accumulated and in micro-batches, in a network without batch norm."""
SHORT = [k for k in LOSSES_BY_KIND.classes if not LOSSES_BY_KIND[k].exact_under_sharding]
"""Losses that are exact with synchronized batch norms alone, which their heads have."""
FLOAT16 = "float16"
"""With steps whose gradients overflow, if only those of one process's images."""
OVERFLOWS = (2, 5)
SHARDED = "sharded teachers"
"""A transformer and a CNN, of each of which a process holds its part, in micro-batches."""
RECOMPUTED = "recomputed activations"
"""With batch norms whose statistics are exchanged in the backward pass once more."""
OBSERVED = "loss simreg, observed"
"""With observers that measure in all processes, and give other weights to the first one."""
CASES = [
    PARTS,
    FLOAT16,
    SHARDED,
    RECOMPUTED,
    OBSERVED,
    *METHOD_SETTINGS,
    *(f"loss {kind}" for kind in dict.fromkeys([*LOSSES, *SHORT])),
]


class Images:
    """As much of a store as a loader reads."""

    def __init__(self):
        shape = (IMAGES, SIZE, SIZE, 3)
        self.images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)

    def __len__(self) -> int:
        return IMAGES


def encoder(seed: int) -> Encoder:
    torch.manual_seed(seed)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16)}
    args |= {"stem_type": "deep", "stem_width": 8}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), SIZE)


def transformer() -> Encoder:
    torch.manual_seed(0)
    args = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), SIZE)


def kind_of(case: str) -> str:
    return case.removeprefix("loss ").split(",")[0]


def steps_of(case: str) -> int:
    kind = kind_of(case)
    return STEPS if kind in LONG else SHORT_STEPS


def task_of(case: str) -> Task:
    seed_generators(3, "task")
    if case == PARTS:
        settings = DistillSettings(steps=STEPS, losses={"it": {"kind": "mse"}})
        return assemble(transformer(), {"teacher": encoder(1)}, settings, IMAGES)
    if case == SHARDED:
        losses = {"it": {"kind": "simreg"}, "maps": {"kind": "mse", "teacher": "b"}}
        settings = DistillSettings(steps=STEPS, losses=losses)
        teachers = {"a": transformer(), "b": encoder(1)}
        teachers["a"].projector = torch.nn.Linear(teachers["a"].embed_dim, 8)
        return assemble(transformer(), teachers, settings, IMAGES)
    if case in (FLOAT16, RECOMPUTED):
        settings = DistillSettings(steps=STEPS, losses={"it": {"kind": "mse"}})
        task = assemble(encoder(0), {"teacher": encoder(1)}, settings, IMAGES)
        if case == RECOMPUTED:
            return task
        last, calls = rank() == world_size() - 1, iter(range(STEPS))
        weight = task.encoder.net.conv1.weight
        weight.register_hook(lambda x: x * (math.inf if next(calls) in OVERFLOWS and last else 1))
        return task
    if not case.startswith("loss "):
        student = transformer() if case == "mae" else encoder(0)
        return METHODS.build(METHODS.schema(case)(steps=STEPS, **METHOD_SETTINGS[case]), student)
    settings = DistillSettings(steps=STEPS, losses={"it": {"kind": kind_of(case)}})
    teacher = encoder(1)
    student = encoder(SEEDS.get(kind_of(case), 0))
    task = assemble(student, {"teacher": teacher}, settings, IMAGES)
    embedding_ND = extract(teacher, Images().images, SIZE, progress=False)
    for loss in task.losses.values():
        if loss.fits_teacher:
            loss.fit_teacher(Representation(embedding_ND, None))
    return task


def observers_for(training: Training) -> list[Observer]:
    num_steps = training.loader.num_steps
    watch = AgreementWatch(Images(), num_steps, BATCH, seed=0)
    watch.looks, watch.interval = True, 5
    return [Selection(Lidar(Images(), 0, RECIPES["weak"]), num_steps, 0.2), watch]


def measure(folder: Path) -> None:
    """Encode in both processes, with the batch statistics of the first one."""
    network = encoder(0).train()
    for buffer in network.buffers():
        buffer += rank()
    images = Images().images
    z_ND = extract(as_in_first(network), images, SIZE, batch_size=7, team=ASSEMBLED)
    if rank() == 0:
        torch.save((z_ND, extract(network, images, SIZE, batch_size=7)), folder / "measured.pt")
    else:
        assert len(z_ND) == 0 and network.training
    try:
        dark = np.full((14, SIZE, SIZE, 3), 2.0, np.float32)
        dark[:7] = 0.5
        extract(network, dark, SIZE, batch_size=7, team=ASSEMBLED)
    except UserError as error:  # found by process 1, and raised where errors are reported
        assert rank() == 0 and "must be in [0, 1]" in str(error)
    else:
        assert rank() == 1


def train(case: str, folder: Path) -> None:
    """Train in this process, or in both; leave losses and weights in ``folder``."""
    task = task_of(case)
    named = getattr(task, "recipes", ("weak",) * max(1, task.num_views))
    training = Training(
        task=task,
        loader=Loader(Images(), BATCH, 1, steps_of(case), world_size=world_size(), rank=rank()),
        recipes=tuple(resolve_recipe(recipe).model_copy(update={"size": None}) for recipe in named),
        optim=OptimSettings(kind="sgd", lr=3e-4),
        seed=2,
        checkpoint_seconds=1e9,
        **({"accumulate": 2, "microbatch": 3} if case == PARTS else {}),
        **({"strategy": "fsdp", "microbatch": 3} if case == SHARDED else {}),
        checkpoint_activations=case in (SHARDED, RECOMPUTED),
    )
    precision = "16-mixed" if case == FLOAT16 else "32-true"
    fabric = build_fabric("cpu", precision=precision)
    if world_size() > 1:
        environment = LightningEnvironment()
        fabric = fabric_of_processes("cpu", WORLD, 1, environment, precision, find_unused=True)
        fabric.launch()
    seed_generators(4, "training")
    tracking = TrackingSettings(wandb="disabled", log_every=1)
    run = Run(folder / f"{case} {rank()}", stage="pretrain", digest="d" * 64, seed=0)
    observers = observers_for(training) if case == OBSERVED else []
    fit(training, fabric, Tracker(run, tracking), observers=observers)
    torch.save(task.state_dict(), run.folder / "weights.pt")
    if case == SHARDED and world_size() > 1:
        torch.save(sharded_teachers(task), run.folder / "teachers.pt")


def sharded_teachers(task: Task) -> dict[str, object]:
    """The fraction of teachers' weights that this process holds, and outputs in bf16.

    Both processes must call it.
    """
    weights = [p for teacher in task.teachers.values() for p in teacher.parameters()]
    held = sum(p.to_local().numel() for p in weights) / sum(p.numel() for p in weights)
    x_BCHW, outputs = torch.rand(2, 3, SIZE, SIZE), {}
    for name, build in (("transformer", transformer), ("cnn", lambda: encoder(1))):
        whole, teacher = (build().eval().requires_grad_(False) for _ in range(2))
        task.teachers = {"it": teacher}
        shard_teachers(task, torch.device("cpu"), "bf16")
        assert is_sharded(teacher) and not is_sharded(whole)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            embeddings = [network(x_BCHW).embedding_BD for network in (whole, teacher)]
        stored = sum(p.to_local().nbytes for p in teacher.parameters())
        outputs[name] = {"embeddings": embeddings, "stored": stored, "whole": _stored(whole)}
    return {"held": held, "outputs": outputs}


def _stored(network: Encoder) -> int:
    return sum(p.nbytes for p in network.parameters())


def process(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(number), "WORLD_SIZE": str(WORLD)}
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=WORLD)
    measure(folder)
    for case in CASES:
        train(case, folder)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    run_together(process, folder, count=WORLD)
    return folder


def test_both_encode_with_the_statistics_of_the_first(shared):
    together, alone = torch.load(shared / "measured.pt", weights_only=True)
    assert together.shape == (IMAGES, 16) and torch.equal(together, alone)


def results(folder: Path, case: str, number: int) -> tuple[list[float], dict]:
    place = folder / f"{case} {number}"
    losses = [line["loss/total"] for line in read_metrics(place)]
    return losses, torch.load(place / "weights.pt", weights_only=True)


def lines(folder: Path, case: str) -> list[dict]:
    return read_metrics(folder / f"{case} 0")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, shared, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(case, tmp_path)
    torch.set_num_threads(threads)
    losses, weights = results(tmp_path, case, 0)
    (first_losses, first), (second_losses, second) = (results(shared, case, n) for n in range(2))
    assert len(losses) == steps_of(case) and first_losses == second_losses
    strict = STRICT_STEPS.get(case, STEPS)
    rel = 1e-3 if case == FLOAT16 else 1e-5  # the parts' gradients are rounded to ten bits
    assert first_losses[:strict] == pytest.approx(losses[:strict], rel=rel, abs=1e-6)
    names = set().union(*lines(tmp_path, case))
    assert case != OBSERVED or {"select/lidar", "agree/cka", "grad/it"} <= names
    for own, whole in zip(lines(shared, case), lines(tmp_path, case), strict=True):
        # Of scaled losses, one process alone measures gradients.
        alone = {k for k in whole if k.startswith("grad/") and k != "grad/norm"}
        alone = alone if case == FLOAT16 else set()
        assert own.keys() == whole.keys() - alone
        found = {k: v for k, v in whole.items() if k not in alone}
        measured = {k: v for k, v in found.items() if k.startswith(MEASURED)}
        if own["step"] < strict and case != FLOAT16:
            assert own == pytest.approx(own | measured, rel=1e-3, abs=1e-4)
    for name, value in first.items():
        assert case == OBSERVED or torch.equal(value, second[name]), name
        if strict < STEPS:
            continue
        error = (value.double() - weights[name].double()).abs().max()
        assert error <= 1e-4 * max(1.0, float(weights[name].abs().max())), name


def test_all_processes_skip_the_same_steps(shared):
    logged = [read_metrics(shared / f"{FLOAT16} {number}") for number in range(WORLD)]
    skipped = [[line["optim/skipped_steps"] for line in lines] for lines in logged]
    expected = [sum(step >= overflow for overflow in OVERFLOWS) for step in range(SHORT_STEPS)]
    assert skipped == [expected] * WORLD


@pytest.mark.parametrize("number", range(WORLD))
def test_a_process_holds_its_part_of_a_teacher_and_sees_the_whole(shared, number):
    found = torch.load(shared / f"{SHARDED} {number}" / "teachers.pt", weights_only=True)
    assert found["held"] == pytest.approx(1 / WORLD, abs=0.02)
    for name, output in found["outputs"].items():
        whole, sharded = output["embeddings"]
        assert torch.equal(whole, sharded), name
        assert output["stored"] < 0.6 * output["whole"] / WORLD, name
