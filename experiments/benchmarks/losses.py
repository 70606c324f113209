"""Cost of every distillation loss, as a fraction of a ResNet-18 student's training step.

    python experiments/benchmarks/losses.py [--npz images.npz] [--out records.jsonl]

The step is the student alone: forward, backward and optimizer at batch 256 on 32x32 images, once
for every view that the loss has it encode. A loss's cost is its own forward and backward, heads and
optimizer included, on what the two networks say of such a batch. Queues hold 65,536 keys of 128
numbers. All take turns.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from measuring import MODELS, SIZE, arguments, interleave, load_images, publish
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distill.distiller import shapes
from ssdistill.distill.pairing import resolve_pairs
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings.registry import LOSSES
from ssdistill.train.memory import keep_freed_memory
from ssdistill.train.optim import OptimSettings, build_optimizer

BATCH, NUM_SAMPLES = 256, 50_000
QUEUE, QUEUE_WIDTH = 65_536, 128
OPTIM = OptimSettings(kind="sgd", lr=0.01)
TRANSFORMER = EncoderSettings(
    name="vit_tiny_patch16_224", args={"img_size": SIZE, "patch_size": 4, "dynamic_img_size": True}
)


@dataclass
class Pair:
    """Two networks and what they say of one batch."""

    student: Encoder
    facts: Shapes
    said: tuple[Representation, Representation]
    images: Tensor

    @classmethod
    def of(cls, settings: EncoderSettings, images: Tensor) -> "Pair":
        student, teacher = (build_encoder(settings, SIZE) for _ in range(2))
        facts = shapes(student, teacher, NUM_SAMPLES)
        said = []
        for encoder, maps in ((student, facts.student_maps), (teacher, facts.teacher_maps)):
            encoder.to(images.device, memory_format=torch.channels_last).train()
            encoder.set_taps(tuple(maps))
            with torch.no_grad(), autocast(images):
                said.append(encoder(images))
            encoder.set_taps(())
        return cls(student, facts, tuple(said), images)


def autocast(images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16)


def timed(work: Callable[[], None], device: torch.device) -> Callable[[], float]:
    """Seconds one call takes, to the end of what it queued on a device."""

    def turn() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return turn


def student_step(pair: Pair) -> Callable[[], None]:
    """Forward, backward and optimizer of the student, by a loss that costs nothing."""
    optimizer = build_optimizer(pair.student, OPTIM)

    def step() -> None:
        with autocast(pair.images):
            embedding_BD = pair.student(pair.images).embedding_BD
        embedding_BD.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(kind: str, pair: Pair) -> tuple[Loss, Shapes]:
    """The loss by default, but for queues of the size that papers use on ImageNet."""
    schema, facts = LOSSES.schema(kind), pair.facts
    queued = "queue" in schema.model_fields
    if queued:
        facts = replace(facts, teacher_dim=QUEUE_WIDTH)
    loss = LOSSES.build(schema(**({"queue": QUEUE} if queued else {})), facts)
    loss.to(pair.images.device).train()
    if loss.fits_teacher:
        width, device = facts.teacher_dim, pair.images.device
        loss.fit_teacher(Representation(torch.randn(8192, width, device=device)))
    return loss, facts


def pairs_of(loss: Loss) -> list[tuple[int, int]]:
    """The pairs of views it compares by default."""
    return resolve_pairs(loss.pairing, [SIZE] * loss.views)


def encoded_views(loss: Loss) -> int:
    """How many views the student encodes for it."""
    return len({ours for ours, _ in pairs_of(loss)}) + len(loss.extra_student)


def loss_step(loss: Loss, facts: Shapes, pair: Pair) -> Callable[[], None]:
    """Forward and backward of the loss, and its heads' optimizer."""
    student, teacher = pair.said
    teacher = replace(teacher, embedding_BD=teacher.embedding_BD[:, : facts.teacher_dim])
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    optimizer = build_optimizer(loss, OPTIM) if parameters else None
    numbers = iter(range(10**9))
    count = len(pairs_of(loss))

    def ours() -> Representation:
        maps = {tap: student.maps[tap].detach().requires_grad_() for tap in loss.student_taps}
        return Representation(student.embedding_BD.detach().requires_grad_(), None, maps)

    def step() -> None:
        number = next(numbers)
        index_B = torch.arange(BATCH, device=pair.images.device) + BATCH * (number % 100)
        batch = Batch(images, index_B, 0, number, 10**6, cutmix_fraction=0.7)
        momentum = [ours()] * count if loss.momentum is not None else ()
        views = Outputs(
            [ours() for _ in range(count)],
            {name: ours() for name in loss.extra_student},
            momentum,
        )
        targets = Outputs([teacher] * count, dict.fromkeys(loss.extra_teacher, teacher))
        with autocast(pair.images):
            value = loss(views, targets, batch)
        value.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        loss.after_step(number, 10**6)

    return step


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--kinds", nargs="+", choices=LOSSES.classes, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every training does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.from_numpy(load_images(args.npz, BATCH)).permute(0, 3, 1, 2).to(device) / 255
    images = images.contiguous(memory_format=torch.channels_last)
    pairs = {
        "resnet18": Pair.of(MODELS["resnet18"], images),
        "vit_tiny": Pair.of(TRANSFORMER, images),
    }
    turns = {name: timed(student_step(pair), device) for name, pair in pairs.items()}
    chosen: dict[str, tuple[Loss, str]] = {}
    for kind in args.kinds or LOSSES.classes:
        for name, pair in pairs.items():
            try:
                loss, facts = build(kind, pair)
            except UserError:
                continue  # the loss needs what only the other network has
            chosen[kind] = loss, name
            turns[kind] = timed(loss_step(loss, facts, pair), device)
            break
    seconds = interleave(turns, args.rounds, "losses")
    rows = [row(kind, *chosen[kind], seconds) for kind in chosen]
    shown = ", ".join(f"{name} {1000 * median(seconds[name]):.0f} ms" for name in pairs)
    publish(
        args.out,
        "losses",
        "Cost of each loss, beside a student's step",
        rows=rows,
        note=f"batch {BATCH}, {SIZE}x{SIZE}, bf16 channels_last, {args.threads} threads, "
        f"{args.rounds} rounds; median (range); the student's step: {shown}",
    )


def row(kind: str, loss: Loss, student: str, seconds: dict[str, list[float]]) -> dict:
    """One line of the table."""
    views = encoded_views(loss)
    shares = [100 * a / (views * b) for a, b in zip(seconds[kind], seconds[student], strict=True)]
    state = sum(b.numel() * b.element_size() for b in loss.buffers())
    return {
        "loss": kind,
        "reads": loss.reads,
        "student": student,
        "views": views,
        "cost (% of its step)": f"{median(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})",
        "cost (ms)": f"{1000 * median(seconds[kind]):.1f}",
        "state (MB)": f"{state / 1e6:.1f}",
    }


if __name__ == "__main__":
    main()
