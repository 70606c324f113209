"""Distillation speed: ssdistill compared with lightly-train, a plain loop, and the networks alone.

    python experiments/benchmarks/distillation.py [--size 112] [--batch 16] [--out records.jsonl]

A ViT-S/14, as DINOv2's, teaches a ResNet-18 on one view of JPEG files of 500x375 pixels. All
networks have random weights, which takes as long:

- lightly-train: `lightly_train.pretrain(method="distillationv1")`, which compares embeddings with a
  queue of the teacher's as `seed` does (its default adds a loss on patches), float32, two loader
  workers; skipped if the package is not installed;
- torchvision v2: a loop as one would write it, v2 transforms on decoded files in two loader
  workers, a cosine loss, float32;
- ssdistill: `fit` as the chain calls it, views cut from original files, loss `seed`, number format
  and memory layout measured by itself; and again in float32;
- the networks alone: forward, backward and optimizer step on views made once.

They take turns, each going on where it stopped; ratios are taken within a round.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from statistics import median

import torch
from lightning_fabric import Fabric
from measuring import (
    AfterStep,
    Lane,
    arguments,
    interleave,
    publish,
    ratio,
    train_bare,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from ssdistill.chain.arithmetic import MEMORY_FORMATS, choose_arithmetic
from ssdistill.chain.benchmark_images import write_photographs
from ssdistill.data.batch import Batch
from ssdistill.data.loader import Loader
from ssdistill.data.opening import open_originals
from ssdistill.data.recipes import RECIPES
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.data.view_plan import ViewPlan
from ssdistill.distill.build import build_losses
from ssdistill.distill.distiller import Distiller
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.registry import LOSSES
from ssdistill.train.loop import Training, fit
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import DeviceSettings

TEACHER, STUDENT = "vit_small_patch14_dinov2", "resnet18"
WORKERS, QUEUE = 2, 256
RATE = 1e-3
LIGHTLY_TRAIN, PLAIN = "lightly-train", "torchvision v2"
OURS, OURS_FP32, ALONE = "ssdistill", "ssdistill in float32", "the networks alone"
CHOSEN = "chosen"


class Files(Dataset):
    """JPEG files, decoded and transformed one at a time."""

    def __init__(self, folder: Path, size: int):
        self.files = sorted(folder.rglob("*.jpg"))
        recipe = RECIPES["strong"]
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, recipe.scale, recipe.ratio, antialias=True),
                v2.RandomHorizontalFlip(recipe.flip),
                v2.RandomApply(
                    [
                        v2.ColorJitter(
                            recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue
                        )
                    ],
                    recipe.jitter,
                ),
                v2.RandomGrayscale(recipe.grayscale),
                v2.RandomApply(
                    [v2.GaussianBlur(int(0.1 * size) // 2 * 2 + 1, recipe.blur_sigma)], recipe.blur
                ),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(decode_jpeg(read_file(str(self.files[index]))))


def networks(size: int) -> tuple:
    """Student and teacher as encoders of the project."""
    torch.manual_seed(0)
    teacher = EncoderSettings(name=TEACHER, args={"dynamic_img_size": True})
    return build_encoder(EncoderSettings(name=STUDENT), size), build_encoder(teacher, size)


def train_plain(photographs: Path, size: int, batch: int, after_step: AfterStep) -> None:
    """A loop as one would write it."""
    device = Fabric(accelerator="auto", devices=1).device
    student, teacher = networks(size)
    student_net, teacher_net = student.net.to(device).train(), teacher.net.to(device).eval()
    head = nn.Linear(student.embed_dim, teacher.embed_dim).to(device)
    optimizer = torch.optim.AdamW([*student_net.parameters(), *head.parameters()], RATE)
    loader = DataLoader(
        Files(photographs, size),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for images_BCHW in loader:
            x_BCHW = images_BCHW.to(device, non_blocking=True)
            with torch.no_grad():
                target_BD = teacher_net(x_BCHW)
            z_BD = head(student_net(x_BCHW).flatten(1))
            loss = 1 - nn.functional.cosine_similarity(z_BD, target_BD).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step()


def train_lightly(photographs: Path, size: int, batch: int, after_step: AfterStep) -> None:
    """lightly-train's command, its teacher without the weights that it would download."""
    import lightly_train
    from lightly_train._methods.distillation import distillation

    package = distillation.package_helpers
    package.get_wrapped_model = partial(package.get_wrapped_model, load_weights=False)
    own = distillation.Distillation.on_train_batch_end

    def ended(self, *outputs: object, **named: object) -> None:
        own(self, *outputs, **named)
        after_step()

    distillation.Distillation.on_train_batch_end = ended
    with tempfile.TemporaryDirectory() as out, redirect_stdout(StringIO()):
        lightly_train.pretrain(
            out=Path(out) / "run",
            data=photographs,
            model=f"timm/{STUDENT}",
            method="distillationv1",
            method_args={"teacher": "dinov2/vits14-noreg", "queue_size": QUEUE},
            epochs=10**6,
            batch_size=batch,
            num_workers=WORKERS,
            precision="32-true",
            transform_args={"image_size": (size, size)},
            model_args={"pretrained": False},
            callbacks={"model_checkpoint": None, "model_export": None},
            loggers={"tensorboard": None},
        )


def our_training(photographs: Path, size: int, batch: int, index: Path) -> Training:
    """A distillation that does not end, as the chain sets one up."""
    device = Fabric(accelerator="auto", devices=1).device
    student, teacher = networks(size)
    source = Folder(path=str(photographs), test_fraction=0.0)
    originals = open_originals(source, "train", StoreSettings(), size, index, workers=WORKERS)
    settings = {"seed": LOSSES.schema("seed")(kind="seed", queue=QUEUE)}
    losses = build_losses(student, teacher, settings, len(originals))
    return Training(
        task=Distiller(student, teacher, losses, settings),
        loader=Loader(originals, batch, 0, 10**9, device, ahead=2),
        recipes=(RECIPES["strong"],),
        optim=OptimSettings(kind="adamw", lr=RATE, schedule="constant", warmup=0),
        seed=0,
        progress=False,
    )


def train_ours(
    photographs: Path, size: int, batch: int, precision: str, folder: Path, after_step: AfterStep
) -> None:
    """The project's loop with its record and checkpoints, without loggers."""
    training = our_training(photographs, size, batch, folder)
    fabric = choose_arithmetic(training, DeviceSettings(precision=precision), folder)
    layout = next(k for k, v in MEMORY_FORMATS.items() if v == training.memory_format)
    (folder / CHOSEN).write_text(f"{training.precision} {layout}")
    # The clock that decides on checkpoints also runs while the others have their turns.
    training.checkpoint_seconds *= 5
    batches = training.loader.iterate

    def iterate(start_step: int, plan: ViewPlan) -> Iterator[Batch]:
        for number, each in enumerate(batches(start_step, plan)):
            if number:
                after_step()
            yield each

    training.loader.iterate = iterate
    run = Run(folder / "run", stage="distill", digest="benchmark", seed=0)
    fit(training, fabric, Tracker(run, TrackingSettings(wandb="disabled")))


def train_alone(
    photographs: Path, size: int, batch: int, folder: Path, after_step: AfterStep
) -> None:
    """The same networks in the format that :func:`train_ours` has chosen, on ready views."""
    with tempfile.TemporaryDirectory() as index:
        training = our_training(photographs, size, batch, Path(index))
        train_bare(training, *(folder / CHOSEN).read_text().split(), after_step)


def measure(
    size: int, batch: int, images: int, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], str]:
    """Images per second of every way in every round, and the format chosen."""
    with ExitStack() as stack:
        auto, fp32, root = (
            Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3)
        )
        write_photographs(root / "photographs", images)
        given = (root / "photographs", size, batch)
        trainings = {LIGHTLY_TRAIN: partial(train_lightly, *given)}
        if find_spec("lightly_train") is None:
            print("lightly_train is not installed: skipped")
            trainings = {}
        trainings |= {
            PLAIN: partial(train_plain, *given),
            OURS: partial(train_ours, *given, "auto", auto),
            OURS_FP32: partial(train_ours, *given, "fp32", fp32),
            ALONE: partial(train_alone, *given, auto),
        }
        turns = {}
        for way, train in trainings.items():
            lane = Lane(train)
            stack.callback(lane.close)
            turns[way] = lambda lane=lane: batch * lane.turn(seconds)
        return interleave(turns, rounds, "distillation"), (auto / CHOSEN).read_text()


def main() -> None:
    parser = arguments(__doc__, rounds=3, seconds=4.0)
    parser.add_argument("--size", type=int, default=112, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    parser.add_argument("--images", type=int, default=1024, help="JPEG files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rates, chosen = measure(args.size, args.batch, args.images, args.rounds, args.seconds)
    pairs = [(OURS, LIGHTLY_TRAIN), (OURS_FP32, LIGHTLY_TRAIN)] if LIGHTLY_TRAIN in rates else []
    pairs += [(OURS, PLAIN), (OURS_FP32, PLAIN), (OURS, ALONE)]
    ratios = {f"{upper} / {lower}": ratio(rates[upper], rates[lower]) for upper, lower in pairs}
    medians = ", ".join(f"{way} {median(values):.1f}" for way, values in rates.items())
    note = (
        f"ViT-S/14 to ResNet-18, one view of {args.size} pixels of JPEG files, batch {args.batch}, "
        f"{args.threads} threads, medians in images/s ({chosen} chosen): {medians}"
    )
    if LIGHTLY_TRAIN in rates:
        from importlib.metadata import version

        note += f"; lightly-train {version('lightly-train')}"
    publish(args.out, "distillation", "Distillation, images per second", ratios, note)


if __name__ == "__main__":
    main()
