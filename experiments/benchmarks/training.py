"""Training speed: ssdistill's loop compared with lightly's and with the bare model.

    python experiments/benchmarks/training.py [--npz images.npz] [--out records.jsonl]

All train the same network, head and loss (SimCLR, two views of 32x32 images, batch 256):

- lightly: SimCLRTransform in two loader workers, pytorch_lightning's Trainer, float32, as in
  lightly's examples;
- torchvision v2: a plain loop, v2 transforms in two loader workers, float32;
- ssdistill: `fit` as the chain calls it, number format and memory layout measured by itself; and
  again in float32, and for the models of `--compiled` with a compiled encoder;
- the model alone: forward, backward and optimizer step on views made once, in the format that
  ssdistill chose.

They take turns, each going on where it stopped; ratios are taken within a round.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytorch_lightning
import torch
from augmentation import FromTensor, TwoViews
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightning_fabric import Fabric
from measuring import (
    MODELS,
    RATE,
    SIZE,
    TEMPERATURE,
    AfterStep,
    Lane,
    arguments,
    interleave,
    load_images,
    publish,
    ratio,
    simclr_training,
    train_bare,
)
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssdistill.chain.arithmetic import MEMORY_FORMATS, choose_arithmetic
from ssdistill.data.batch import Batch
from ssdistill.data.view_plan import ViewPlan
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.loop import Training, fit
from ssdistill.train.settings import DeviceSettings

BATCH = 256
IMAGES = 50_000
LIGHTLY, PLAIN, OURS = "lightly", "torchvision v2", "ssdistill"
OURS_FP32, ALONE = "ssdistill in float32", "the model alone"
OURS_COMPILED = "ssdistill compiled"
WAYS = 6
CHOSEN = "chosen"
"""File in which ssdistill leaves the format it has chosen for the model alone."""


class AsPil(Dataset):
    """Images of an array as lightly's transforms want them; labels are made up."""

    def __init__(self, images_NHWC: np.ndarray):
        self.images_NHWC, self.transform = images_NHWC, None

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.images_NHWC[index])), 0


class LightlySimCLR(pytorch_lightning.LightningModule):
    """SimCLR as in lightly's examples, around a given backbone."""

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(width, width, 128)
        self.criterion = NTXentLoss(temperature=TEMPERATURE)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x_BCHW).flatten(start_dim=1))

    def training_step(self, batch: list, batch_index: int) -> Tensor:
        x0_BCHW, x1_BCHW = batch[0]
        return self.criterion(self(x0_BCHW), self(x1_BCHW))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Calls(pytorch_lightning.Callback):
    """Calls something after every optimizer step."""

    def __init__(self, call: AfterStep):
        self.call = call

    def on_train_batch_end(self, *_: object) -> None:
        self.call()


def train_lightly(
    settings: EncoderSettings, images_NHWC: np.ndarray, after_step: AfterStep
) -> None:
    """lightly's own way."""
    transform = SimCLRTransform(input_size=SIZE)
    dataset = LightlyDataset.from_torch_dataset(AsPil(images_NHWC), transform=transform)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    encoder = build_encoder(settings, SIZE)
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1,
        callbacks=[Calls(after_step)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LightlySimCLR(encoder.net, encoder.embed_dim), loader)


def train_plain(settings: EncoderSettings, images_NHWC: np.ndarray, after_step: AfterStep) -> None:
    """A loop as one would write it around torchvision's transforms."""
    device = Fabric(accelerator="auto", devices=1).device
    loader = DataLoader(
        TwoViews(images_NHWC, FromTensor()),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    encoder = build_encoder(settings, SIZE)
    head = SimCLRProjectionHead(encoder.embed_dim, encoder.embed_dim, 128)
    model = nn.Sequential(encoder.net, nn.Flatten(), head).to(device).train()
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    while True:
        for views in loader:
            z0_BP, z1_BP = (model(view.to(device, non_blocking=True)) for view in views)
            criterion(z0_BP, z1_BP).backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step()


def train_ours(
    settings: EncoderSettings,
    images_NHWC: np.ndarray,
    precision: str,
    folder: Path,
    compiled: bool,
    after_step: AfterStep,
) -> None:
    """The project's loop with its record and checkpoints, without loggers."""
    device = DeviceSettings(precision=precision, compile=compiled)
    where = Fabric(accelerator=device.accelerator, devices=1).device
    training = simclr_training(settings, images_NHWC, BATCH, where)
    fabric = choose_arithmetic(training, device, folder)
    (folder / CHOSEN).write_text(f"{training.precision} {_layout(training)}")
    # The clock that decides on checkpoints also runs while the others have their turns.
    training.checkpoint_seconds *= WAYS
    batches = training.loader.iterate

    def iterate(start_step: int, plan: ViewPlan) -> Iterator[Batch]:
        for batch in batches(start_step, plan):
            after_step()
            yield batch

    training.loader.iterate = iterate
    run = Run(folder / "run", stage="pretrain", digest="benchmark", seed=0)
    fit(training, fabric, Tracker(run, TrackingSettings(wandb="disabled")))


def train_alone(
    settings: EncoderSettings, images_NHWC: np.ndarray, folder: Path, after_step: AfterStep
) -> None:
    """The same model in the format that :func:`train_ours` has chosen, on ready views."""
    where = Fabric(accelerator="auto", devices=1).device
    training = simclr_training(settings, images_NHWC[:BATCH], BATCH, where)
    train_bare(training, *(folder / CHOSEN).read_text().split(), after_step)


def _layout(training: Training) -> str:
    return next(k for k, layout in MEMORY_FORMATS.items() if layout == training.memory_format)


def measure(
    name: str, images_NHWC: np.ndarray, rounds: int, seconds: float, compiled: bool
) -> tuple[dict[str, list[float]], str]:
    """Images per second of every way in every round, and the format chosen."""
    given = (MODELS[name], images_NHWC)
    with ExitStack() as stack:
        auto, fp32, third = (
            Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3)
        )
        trainings = {
            LIGHTLY: partial(train_lightly, *given),
            PLAIN: partial(train_plain, *given),
            OURS: partial(train_ours, *given, "auto", auto, False),
            OURS_FP32: partial(train_ours, *given, "fp32", fp32, False),
            ALONE: partial(train_alone, *given, auto),
        }
        if compiled:
            trainings[OURS_COMPILED] = partial(train_ours, *given, "auto", third, True)
        turns = {}
        for way, train in trainings.items():
            lane = Lane(train)
            stack.callback(lane.close)
            turns[way] = lambda lane=lane: BATCH * lane.turn(seconds)
        return interleave(turns, rounds, name), (auto / CHOSEN).read_text()


def main() -> None:
    parser = arguments(__doc__, rounds=5, seconds=5.5)
    usual = ("small", "resnet18_w025")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=usual)
    parser.add_argument("--compiled", nargs="*", choices=MODELS, default=(), help="also compiled")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images_NHWC = load_images(args.npz, IMAGES)
    ratios, notes = {}, [f"batch {BATCH}, {args.threads} threads, medians in images/s"]
    for name in args.models:
        compiled = name in args.compiled
        rates, chosen = measure(name, images_NHWC, args.rounds, args.seconds, compiled)
        pairs = ((OURS, LIGHTLY), (OURS_FP32, LIGHTLY), (OURS, PLAIN), (OURS, ALONE))
        pairs += ((OURS_COMPILED, LIGHTLY),) if compiled else ()
        for upper, lower in (*pairs, (ALONE, LIGHTLY)):
            ratios[f"{name}: {upper} / {lower}"] = ratio(rates[upper], rates[lower])
        medians = ", ".join(f"{way} {median(values):.0f}" for way, values in rates.items())
        notes.append(f"{name} ({chosen} chosen): {medians}")
    publish(args.out, "training", "SimCLR training, images per second", ratios, "; ".join(notes))


if __name__ == "__main__":
    main()
