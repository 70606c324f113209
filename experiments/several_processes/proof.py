"""Every loss and method trained by one process and by two: how much do the results differ?

    python experiments/several_processes/proof.py [--steps 50] [--out records.jsonl]

One process trains on whole batches. Two gloo processes train on half of every batch each, once
with batch statistics of the whole batch (``device.sync_batchnorm``) and once with their own. The
network and the heads of most losses have batch norms. All of it in float32 on one CPU thread.
"""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment

from ssdistill.chain.tasks import assemble
from ssdistill.data.extra import NEIGHBOR_VIEWS
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import resolve_recipe
from ssdistill.distill.neighbors import nearest_neighbors
from ssdistill.distributed import rank, world_size
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings
from ssdistill.label_free.features import extract
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder
from ssdistill.models.representation import Representation
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.registry import LOSSES, METHODS
from ssdistill.train.fabric import build_fabric, fabric_of_processes
from ssdistill.train.loop import Training, fit
from ssdistill.train.optim import OptimSettings
from ssdistill.train.seeding import seed_generators
from ssdistill.train.task import Task

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

WORLD, BATCH, IMAGES, SIZE = 2, 16, 48, 16
RATE, SMALLEST = 3e-4, 1e-3
"""Learning rate, of SGD; largest value below which a tensor's difference is relative to this."""
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
CASES = [*(f"method {kind}" for kind in METHODS.classes), *(f"loss {k}" for k in LOSSES.classes)]
ALONE, SYNCHRONIZED, SEPARATE = "alone", "synchronized", "separate"


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


def task_of(case: str, steps: int) -> Task:
    seed_generators(3, "task")
    what, kind = case.split()
    if what == "method":
        student = transformer() if kind == "mae" else encoder(0)
        settings = METHODS.schema(kind)(steps=steps, **METHOD_SETTINGS.get(kind, {}))
        return METHODS.build(settings, student)
    settings, teacher = DistillSettings(steps=steps, losses={"it": {"kind": kind}}), encoder(1)
    task = assemble(encoder(0), {"teacher": teacher}, settings, IMAGES)
    embedding_ND = extract(teacher, Images().images, SIZE, progress=False)
    if NEIGHBOR_VIEWS & set(task.extra_views):
        task.neighbors_NK = nearest_neighbors(embedding_ND)
    for loss in task.losses.values():
        if loss.fits_teacher:
            loss.fit_teacher(Representation(embedding_ND, None))
    return task


def train(case: str, steps: int, way: str, folder: Path) -> None:
    """Train in this process, or in both; leave losses and weights in ``folder``."""
    task = task_of(case, steps)
    named = getattr(task, "recipes", ("weak",) * max(1, task.num_views))
    training = Training(
        task=task,
        loader=Loader(
            Images(), BATCH, 1, steps, world_size=world_size(), rank=rank(),
            neighbors=task.neighbors_NK,
        ),
        recipes=tuple(resolve_recipe(recipe).model_copy(update={"size": None}) for recipe in named),
        optim=OptimSettings(kind="sgd", lr=RATE),
        seed=2,
        checkpoint_seconds=float("inf"),
        sync_batchnorm=way == SYNCHRONIZED,
    )  # fmt: skip
    fabric = build_fabric("cpu", precision="32-true")
    if world_size() > 1:
        environment = LightningEnvironment()
        fabric = fabric_of_processes("cpu", WORLD, 1, environment, "32-true", find_unused=True)
        fabric.launch()
    seed_generators(4, "training")
    first = {name: p.detach().clone() for name, p in task.named_parameters()}
    tracking = TrackingSettings(wandb="disabled", log_every=1, gradients_every=None)
    run = Run(folder / f"{way} {case} {rank()}", stage="pretrain", digest="d" * 64, seed=0)
    fit(training, fabric, Tracker(run, tracking))
    kept = {"first": first, "state": task.state_dict(), "names": list(first)}
    torch.save(kept, run.folder / "weights.pt")


def process(number: int, folder: Path, steps: int) -> None:
    """Process 0 and 1 train together; process 2 trains alone meanwhile."""
    torch.set_num_threads(1)
    if number < WORLD:
        os.environ |= {"LOCAL_RANK": str(number), "WORLD_SIZE": str(WORLD)}
        meeting = f"file://{folder / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=WORLD)
    ways = (SYNCHRONIZED, SEPARATE) if number < WORLD else (ALONE,)
    for case in CASES:
        for way in ways:
            try:
                train(case, steps, way, folder)
            except UserError:
                # Both refuse alike: what a tiny experiment of 48 images does not have.
                (folder / f"refused {case}").write_text(traceback.format_exc())
    if number < WORLD:
        dist.destroy_process_group()


def read(folder: Path, way: str, case: str, number: int = 0) -> tuple[np.ndarray, dict]:
    place = folder / f"{way} {case} {number}"
    losses = np.array([line["loss/total"] for line in read_metrics(place)])
    return losses, torch.load(place / "weights.pt", weights_only=True)


def difference(ours: dict, theirs: dict, names: list[str]) -> float:
    """Largest difference of any weight, relative to the largest of its tensor."""
    worst = 0.0
    for name in names:
        a, b = ours[name].double(), theirs[name].double()
        worst = max(worst, float((a - b).abs().max() / max(SMALLEST, float(b.abs().max()))))
    return worst


def row(folder: Path, case: str) -> dict:
    what, kind = case.split()
    losses, alone = read(folder, ALONE, case)
    found = {"what": f"{what} `{kind}`"}
    exact = LOSSES[kind].exact_under_sharding if what == "loss" else True
    found["documented as exact"] = "yes" if exact else "with sync_batchnorm"
    names = [name for name in alone["names"] if alone["state"][name].is_floating_point()]
    found["weights moved by"] = f"{difference(alone['state'], alone['first'], names):.1e}"
    for way in (SYNCHRONIZED, SEPARATE):
        ours, first = read(folder, way, case)
        _, second = read(folder, way, case, 1)
        gap = float((np.abs(ours - losses) / np.maximum(np.abs(losses), SMALLEST)).max())
        found[f"losses, {way}"] = f"{gap:.1e}"
        found[f"weights, {way}"] = f"{difference(first['state'], alone['state'], names):.1e}"
        if way == SYNCHRONIZED:
            state = second["state"]
            equal = all(torch.equal(x, state[name]) for name, x in first["state"].items())
            found["equal in both processes"] = "yes" if equal else "no"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.multiprocessing.spawn(process, (folder, args.steps), nprocs=WORLD + 1)
        refused = [case for case in CASES if (folder / f"refused {case}").exists()]
        for case in refused:
            print((folder / f"refused {case}").read_text().splitlines()[-1])
        rows = [row(folder, case) for case in CASES if case not in refused]
    note = (
        f"largest relative differences in {args.steps} steps of SGD on {BATCH} of {IMAGES} images "
        f"of {SIZE} pixels; float32, one thread a process"
    )
    publish(args.out, "proof", "Two processes against one", note=note, rows=rows)


if __name__ == "__main__":
    main()
