"""Try one training step before the plan runs, so that errors surface early."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssdistill.data.batch import Batch
from ssdistill.data.extra import EXTRA, check_rotations
from ssdistill.data.recipes import ViewRecipe, expand
from ssdistill.data.view_size import area
from ssdistill.errors import UserError
from ssdistill.machine import memory_bytes
from ssdistill.models.backbones import Encoder
from ssdistill.models.trial import REFUSALS, check_fits, reason_of
from ssdistill.settings import Size, as_size, height_width
from ssdistill.train.interrupt import Interruptible
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.passes import require_mean_over_images
from ssdistill.train.task import Task

MOST_LAYERS = 5000
"""Modules of all networks together through which a step is followed, which takes seconds."""
CHEAP_PIXELS = 1 << 17
"""A step of at most so many pixels is computed; of a larger one only the shapes are."""


def check_step(
    task: Task,
    rebuild: Callable[[], Task],
    recipes: Sequence[ViewRecipe],
    image_size: Size,
    batch_size: int,
    key: str,
    microbatch: int | None = None,
    accumulate: int = 1,
) -> list[str]:
    """Compute the losses of one batch with a task that is discarded afterwards.

    The shapes are followed by tensors without numbers, which compute nothing; where they fail, a
    small batch is computed to make sure. A batch of one is always computed, since a loss that
    compares images has nothing to compare then.

    Args:
        task: is not used afterwards.
        rebuild: makes it once more, where it must be computed.
        recipes: of its views; with fewer than it takes, which the plan refuses, nothing is tried.
        image_size: of views whose recipe has no size.
        key: of the settings, for messages.
        microbatch: images that an encoder encodes at a time; None for all.
        accumulate: parts of the batch; the smallest is tried.

    Returns:
        a notice where the step could not be tried for its size.

    Raises:
        UserError: the step fails, a loss is not finite, or the batch does not fit into memory.
    """
    sizes = [recipe.size or image_size for recipe in expand(recipes)]
    if len(sizes) < task.num_views:
        return []
    try:
        check_rotations(task.extra_views, sizes[0])
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    sizes += [sizes[-1 if name == "neighbor_1" else 0] for name in task.extra_views]
    count = 4 * _channels(task) * batch_size * sum(map(area, sizes))
    if count > memory_bytes():
        raise UserError(
            f"{key}: {len(sizes)} views of {batch_size} images need {count / 1e9:.0f} GB, "
            "more than this machine has; lower batch_size or the views' size"
        )
    try:
        require_mean_over_images(task, accumulate, batch_size, microbatch)
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    single = f"accumulate={accumulate}" if accumulate > 1 else "batch_size=1"
    single = (
        single if microbatch is None or batch_size == accumulate else f"microbatch={microbatch}"
    )
    batch_size //= accumulate
    pixels = batch_size * sum(map(area, _seen_sizes(task, sizes)))
    layers = sum(1 for network in _networks(task) for _ in network.modules())
    if batch_size > 1 and layers > MOST_LAYERS:
        return [f"{key}: skipped the trial step: {layers} layers take too long"]
    failure = _failure_without_memory(task, sizes, batch_size, microbatch)
    if batch_size > 1 and (failure is None or pixels > CHEAP_PIXELS):
        if isinstance(failure, ValueError):  # raised by checks, which need no numbers
            raise _refusal(key, failure, single) from failure
        return [] if failure is None else [_skipped_notice(key, pixels)]
    if pixels > CHEAP_PIXELS * 8:
        return [_skipped_notice(key, pixels)]
    with torch.random.fork_rng(devices=[]):
        try:
            losses = _losses(rebuild(), sizes, batch_size, microbatch)
        except REFUSALS as error:
            raise _refusal(key, error, single) from error
    _check_finite(losses, key, batch_size)
    return []


def _seen_sizes(task: Task, sizes: list[Size]) -> list[Size]:
    """The sizes of views as the largest network resizes them."""
    modules = [module for network in _networks(task) for module in network.modules()]
    encoders = [module for module in modules if isinstance(module, Encoder)]
    resized = [encoder.spec.input_size for encoder in encoders if encoder.spec.input_size]
    if not resized:
        return sizes
    height, width = (max(sides) for sides in zip(*map(height_width, resized), strict=True))
    seen = [(max(h, height), max(w, width)) for h, w in map(height_width, sizes)]
    return [as_size(*pair) for pair in seen]


def _channels(task: Task) -> int:
    """How many channels the images have."""
    return len(task.encoder.spec.mean)


def _networks(task: Task) -> list[nn.Module]:
    """The task and a distiller's teachers, which are no modules of it."""
    return [task, *getattr(task, "teachers", {}).values()]


def _skipped_notice(key: str, pixels: int) -> str:
    return f"{key}: skipped the trial step: {pixels / 1e6:.1f} million pixels take too long"


def check_size(build: Callable[[], nn.Module], key: str) -> None:
    """Check that heads, queues and memory banks fit into memory."""
    check_fits(build, f"{key}: the network with its heads and queues")


def _failure_without_memory(
    task: Task, sizes: list[Size], batch_size: int, microbatch: int | None
) -> Exception | None:
    """What goes wrong with tensors that have shapes and no numbers.

    They say that they are on the CPU: torch has no autocast of its meta device.

    Raises:
        KeyboardInterrupt: after Ctrl-C, which inside of their operations would end the process.
    """
    with Interruptible() as interrupt:
        failure = None
        try:
            with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
                _losses(task, sizes, batch_size, microbatch)
        except Exception as error:
            failure = error
    if interrupt.requested:
        raise KeyboardInterrupt
    return failure


def _losses(
    task: Task, sizes: list[Size], batch_size: int, microbatch: int | None
) -> dict[str, Tensor]:
    """The losses of a batch of noise on the CPU, in training mode."""
    channels, device = _channels(task), torch.device("cpu")
    views = [torch.rand(batch_size, channels, *height_width(size), device=device) for size in sizes]
    shape = (batch_size, *height_width(sizes[0]), channels)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
    index_B = torch.arange(batch_size, device=device)
    batch = Batch(pixels, index_B, epoch=0, step=0, num_steps=1)
    if set(task.extra_views) & set(EXTRA):
        batch.neighbors_BHWC, batch.cutmix_fraction = pixels, 0.5
    with in_microbatches(task, batch_size, microbatch):
        return task.train()(views, batch)


def _refusal(key: str, error: Exception, single: str) -> UserError:
    """Say why the step fails; ``single`` is the setting that leaves batch norms one image."""
    if "more than 1 value per channel" in str(error):
        name, _, _ = single.partition("=")
        remedy = "lower accumulate" if name == "accumulate" else f"set a larger {name}"
        return UserError(f"{key}.{single}: batch statistics require at least 2 images; {remedy}")
    return UserError(
        f"{key}: the first training step would fail ({reason_of(error)}); check batch_size, views "
        "and the settings of this section"
    )


def _check_finite(losses: dict[str, Tensor], key: str, batch_size: int) -> None:
    for name, loss in losses.items():
        if batch_size == 1 and not math.isfinite(float(loss.detach())):
            raise UserError(
                f"{key}.batch_size=1: the loss '{name}' compares the images of a batch and is "
                f"{float(loss.detach())} for a single one; set a larger batch_size"
            )
