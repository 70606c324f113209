"""Supervised training of linear heads and encoders on the common training loop."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import BeforeValidator, ValidationError
from torch import Tensor, nn

from ssdistill.data.recipes import RECIPES, ViewRecipe, resolve_recipe
from ssdistill.data.recipes_of_images import suited
from ssdistill.distributed import ALONE, Team, is_shared
from ssdistill.errors import UserError
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.settings.wording import said_of
from ssdistill.train.optim import OptimSettings
from ssdistill.train.seeding import derive_seed, own_generators
from ssdistill.train.task import Task

if TYPE_CHECKING:
    from ssdistill.train.loop import Training
    from ssdistill.train.sharing import Order

HeadInit = Literal["zero", "normal", "uniform"]

LINES = 50
"""How often the loop notes its loss, about."""


@dataclass(frozen=True)
class LabeledTraining:
    """Settings of a supervised training.

    Attributes:
        optim: settings of :class:`~ssdistill.train.optim.OptimSettings`.
        recipe: of the views.
        batch_size: images a step; all there are where there are fewer.
        epochs, steps: one of them.
        head_init: see :func:`first_weights`.
        seed: of everything that is drawn: order, views, first weights.
        title: what the progress bar and messages call it.
    """

    optim: Mapping[str, Any]
    recipe: ViewRecipe
    batch_size: int
    epochs: float | None = None
    steps: int | None = None
    head_init: HeadInit = "zero"
    seed: int = 0
    title: str = "training"

    def length(self, num_images: int) -> tuple[int, int]:
        """Batch size and optimizer steps for so many images to learn from.

        What does not fill a last batch waits for the next epoch.
        """
        batch_size = min(self.batch_size, num_images)
        if self.steps:
            return batch_size, self.steps
        epochs = cast("float", self.epochs)  # one of the two is set
        return batch_size, max(1, round(epochs * (num_images // batch_size)))


@dataclass(frozen=True, eq=False, kw_only=True)
class SupervisedResult:
    """Result of a training with labels.

    Attributes:
        classes: labels in the order of the columns.
        probabilities_NK: probability of every class for every test image.
        n_train: training images whose labels were used.
        steps, batch_size: as they were.
        loss: from the first step to the last.
        seconds: wall time.
    """

    classes: np.ndarray = field(repr=False)
    probabilities_NK: np.ndarray = field(repr=False)
    n_train: int
    steps: int
    batch_size: int
    loss: list[float] = field(repr=False)
    seconds: float


def _named(recipe: Any) -> Any:
    return None if recipe == "auto" else resolve_recipe(recipe)


RecipeSetting = Annotated[ViewRecipe | None, BeforeValidator(_named)]
"""Type of a protocol's ``recipe``: a name, ``{recipe: name, …}``, settings, or ``auto``."""


def plain_recipe(recipe: Any) -> dict[str, Any] | None:
    """A view recipe, by name or by its settings, as plain values; None and ``auto`` are None.

    Raises:
        UserError: no recipe of that name, or settings that no recipe has.
    """
    if recipe is None or recipe == "auto":
        return None
    try:
        return ViewRecipe.model_validate(resolve_recipe(recipe)).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(["recipe", *map(str, problem["loc"])])
        raise UserError(f"{place}: {said_of(problem)}") from error
    except ValueError as error:
        raise UserError(f"recipe: {error}") from error


def recipe_for(subject: Subject, recipe: dict[str, Any] | None) -> ViewRecipe:
    """The views to train on: ``recipe``, else crops and mirror images; as the channels allow.

    Images that natural views would spoil are cropped and mirrored as their own recipe says,
    which for digits is: gently, and not at all.
    """
    if recipe is not None:
        return suited(ViewRecipe.model_validate(recipe), subject.train)
    if subject.default_recipe is None:
        return suited(RECIPES["crop_flip"], subject.train)
    own = RECIPES[subject.default_recipe]
    return suited(ViewRecipe(scale=own.scale, ratio=own.ratio, flip=own.flip), subject.train)


def length_of(
    protocol: Protocol, epochs: float | None, steps: int | None, default: float
) -> tuple[float | None, int | None]:
    """Epochs and steps, one of them None: as given, as the preset says, or ``default`` epochs.

    Raises:
        UserError: both are given.
    """
    if epochs is not None and steps is not None:
        raise UserError(
            f"{protocol.kind}: epochs={epochs} and steps={steps} are both set; set only one of them"
        )
    if epochs is None and steps is None:
        epochs, steps = (protocol.chosen(name, None, None) for name in ("epochs", "steps"))
    return (default, None) if epochs is None and steps is None else (epochs, steps)


def home_of(subject: Subject) -> torch.device:
    """Where to train: the subject's device, or the one its encoder is on."""
    if subject.device is not None:
        return torch.device(subject.device)
    if not isinstance(subject.encoder, nn.Module):
        return torch.device("cpu")
    return next((p.device for p in subject.encoder.parameters()), torch.device("cpu"))


def fit_with_labels(
    task: Task,
    subject: Subject,
    rows_M: Tensor,
    how: LabeledTraining,
    optim: OptimSettings,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> list[float]:
    """Train ``task`` on some of the training images; it holds their labels itself.

    Nothing is kept between two calls: a training that is interrupted starts anew. The global
    generators are left as they were. The processes of the subject's team each train on a part of
    every batch, unless it cannot be divided among them.

    Args:
        rows_M: positions of the training images.
        optim: from ``how.optim``.
        precision: of the whole task, in Lightning Fabric's words.

    Returns:
        the total loss, about fifty times from the first step to the last.

    Raises:
        UserError: the loss is not finite.
    """
    # Fabric takes seconds to import, and a config that names this protocol imports this file.
    from ssdistill.train.loop import Training
    from ssdistill.train.sharing import Order

    batch_size, num_steps = how.length(len(rows_M))
    rows = rows_M.cpu().numpy().astype(np.int64)
    training = Training(
        task=task,
        loader=cast("Any", None),  # every process has its own
        recipes=(how.recipe,),
        optim=optim,
        seed=derive_seed(how.seed, "views"),
        title=how.title,
        checkpoint_seconds=float("inf"),
        memory_format=torch.channels_last,
        image_size=subject.image_size,
        progress=False,
    )
    order = Order(batch_size, derive_seed(how.seed, "order"), num_steps, rows=rows)
    # What a runtime encodes uses all cores by itself.
    divisible = batch_size % subject.team.size == 0 and isinstance(subject.encoder, nn.Module)
    team = subject.team if divisible else ALONE
    arguments = training, order, subject.train, home_of(subject), precision, how.seed
    try:
        return team.do(_fit, subject.team, *arguments, progress=subject.progress)
    except UserError as error:
        raise UserError(f"{how.title} of '{subject.name}': {error}") from error


def _fit(
    team: Team,
    training: "Training",
    order: "Order",
    images: Any,
    device: torch.device,
    precision: Literal["32-true", "bf16-mixed"],
    seed: int,
    *,
    progress: bool = False,
) -> list[float]:
    from ssdistill.train.fabric import build_fabric
    from ssdistill.train.loop import fit
    from ssdistill.train.sharing import has_unused

    training = replace(training, loader=order.loader(images, device), progress=progress)
    quiet = TrackingSettings(
        wandb="disabled", log_every=max(1, order.num_steps // LINES), gradients_every=None
    )
    # The loop always writes a record; this one is discarded.
    with tempfile.TemporaryDirectory() as folder, own_generators(seed, training.title):
        if is_shared():
            fabric = team.fabric(precision, find_unused=has_unused(training))
        else:
            devices = 1 if device.type == "cpu" else [device.index or 0]
            fabric = build_fabric(device.type, devices, precision)
        identity = {"digest": training.title, "seed": seed, "kind": training.title}
        with Run(folder, stage="evaluate", **identity) as run:
            fit(training, fabric, Tracker(run, quiet))
        return [line["loss/total"] for line in read_metrics(folder)]


def first_weights(init: HeadInit, num_classes: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of a linear layer before training.

    Args:
        init: ``zero``; ``normal``: N(0, 0.01^2), bias zero (as MoCo, SEED, DINOv2 do);
            ``uniform``: PyTorch's own, U(-1, 1) / sqrt(D) for both.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    weight_KD, bias_K = torch.zeros(num_classes, width), torch.zeros(num_classes)
    if init == "normal":
        weight_KD.normal_(0.0, 0.01, generator=generator)
    elif init == "uniform":
        bound = width**-0.5
        weight_KD.uniform_(-bound, bound, generator=generator)
        bias_K.uniform_(-bound, bound, generator=generator)
    return weight_KD, bias_K
