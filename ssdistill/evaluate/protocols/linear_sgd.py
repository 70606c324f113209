"""Protocol ``linear_sgd``: a linear layer trained by SGD on crops, as the papers do it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ssdistill.evaluate.probes.sgd_probe import HeadTraining, Scaling, sgd_probe
from ssdistill.evaluate.probes.supervised import (
    HeadInit,
    RecipeSetting,
    length_of,
    plain_recipe,
    recipe_for,
)
from ssdistill.evaluate.protocols import Measurements, Protocol, classified
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import (
    Fraction,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    Positive,
    PositiveInt,
)

_STEPPED = {"schedule": "step", "milestones": (0.6, 0.8), "batch_size": 256, "epochs": 100}
_MOCO = _STEPPED | {"lrs": (30.0,), "head_init": "normal"}
_COMPRESS = {
    "epochs": 40, "batch_size": 256, "lrs": (0.01,), "weight_decay": 1e-4, "schedule": "step",
    "milestones": (15 / 40, 30 / 40), "scaling": "unit_standard", "head_init": "uniform",
}  # fmt: skip
_DINOV2 = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

DEFAULTS: dict[str, Any] = {
    "epochs": 20, "steps": None, "batch_size": 128, "lrs": (0.01, 0.03, 0.1, 0.3, 1.0),
    "momentum": 0.9, "weight_decay": 0.0, "schedule": "cosine", "milestones": (0.6, 0.8),
    "lr_end": 0.0, "scaling": "standard", "head_init": "zero",
}  # fmt: skip
"""What holds where neither the config nor a preset says otherwise; ours, not a paper's."""


class LinearSGD(Protocol):
    """A linear layer by SGD on random crops and mirror images, the encoder frozen.

    The encoder stays in eval mode: no gradient reaches it and no statistic of it moves. The
    layer is tested as it is after the last step, never at its best epoch.

    Several learning rates are trained side by side on the same batches, and the one to be
    reported is chosen on held-out training labels. The papers choose theirs on the very images
    they report on; their numbers are that much too good, and this protocol's are not. The
    chosen layer is not trained again on all labels. With a single learning rate nothing is held
    out.

    Presets are the protocols of papers and libraries with their own values, of which ``epochs``
    and ``steps`` are meant for ImageNet: give your own for fewer images.

    - ``solo``: solo-learn's offline linear evaluation, learning rate as for BYOL and DINO. Their
      configs tune it by method: 0.1 Barlow Twins, 0.15 SwAV, 1 SimCLR, 3 MoCo v2+, 30 SimSiam.
    - ``lightly``: lightly's benchmarks.
    - ``moco``: MoCo, arXiv:1911.05722; ``seed``: SEED, arXiv:2101.04731, the same.
    - ``compress``: CompRess, arXiv:2010.14713, on features of length 1, then standardized;
      ``simreg``: SimReg, arXiv:2201.05131, the same.
    - ``dinov2``: DINOv2, arXiv:2304.07193, with 13 learning rates, on the encoder's embedding
      alone (DINOv2 also tries four blocks and the mean of the patches).

    Args:
        preset: provides the values of the settings that are not specified.
        epochs: passes over the training images; give this or ``steps``.
        steps: optimizer steps.
        batch_size: images a step (all there are where there are fewer). The learning rates of
            ``solo``, ``lightly`` and ``dinov2`` are proportional to it.
        lrs: learning rates, as used.
        momentum, weight_decay: of SGD; biases decay, too.
        schedule: ``constant``, ``cosine`` (by step, to ``lr_end``) or ``step`` (a tenth at each
            of ``milestones``).
        milestones: fractions of the training.
        lr_end: last learning rate of ``cosine`` as a fraction of the first.
        scaling: of the features: ``raw``, ``standard`` (mean 0 and deviation 1 over the
            training images) or ``unit_standard`` (to length 1 before that).
        head_init: first weights: ``zero``, ``normal`` (deviation 0.01) or ``uniform``
            (PyTorch's own).
        recipe: views of the training images; ``auto`` is ``crop_flip``, or for data that has
            views of its own the crops of these.
        holdout: fraction of every class's training labels the choice is made on.
        seed: of that split, of the order of the images, of the views and of first weights.
    """

    kind = "linear_sgd"
    paper = "linear evaluation of MoCo, arXiv:1911.05722, DINOv2, arXiv:2304.07193, and others"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "solo": _STEPPED | {"lrs": (0.3,), "scaling": "raw", "head_init": "uniform"},
        "lightly": {
            "epochs": 90, "batch_size": 256, "lrs": (0.1,), "schedule": "cosine", "lr_end": 1e-3,
            "scaling": "raw", "head_init": "uniform",
        },
        "moco": _MOCO | {"scaling": "raw"},
        "seed": _MOCO | {"scaling": "raw"},
        "compress": _COMPRESS,
        "simreg": _COMPRESS,
        "dinov2": {
            "steps": 12_500, "batch_size": 128, "lrs": tuple(lr * 128 / 256 for lr in _DINOV2),
            "schedule": "cosine", "scaling": "raw", "head_init": "normal",
        },
    }  # fmt: skip
    linear_in_batch_size = ("solo", "lightly", "dinov2")
    """Presets whose learning rates are proportional to the batch size."""

    def __init__(
        self,
        *,
        preset: Literal["solo", "lightly", "moco", "seed", "compress", "simreg", "dinov2"]
        | None = None,
        epochs: Positive | None = None,
        steps: PositiveInt | None = None,
        batch_size: PositiveInt | None = None,
        lrs: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None,
        momentum: Fraction | None = None,
        weight_decay: NonNegative | None = None,
        schedule: Literal["constant", "cosine", "step"] | None = None,
        milestones: tuple[OpenFraction, ...] | None = None,
        lr_end: Fraction | None = None,
        scaling: Scaling | None = None,
        head_init: HeadInit | None = None,
        recipe: RecipeSetting = None,
        holdout: OpenFraction = 0.1,
        seed: NonNegativeInt = 0,
    ):
        def chosen(name: str, value: Any) -> Any:
            return self.chosen(name, value, DEFAULTS[name])

        self.preset, self.holdout, self.seed = preset, holdout, seed
        self.epochs, self.steps = length_of(self, epochs, steps, DEFAULTS["epochs"])
        self.batch_size = chosen("batch_size", batch_size)
        self.lrs = self._rates() if lrs is None else tuple(lrs)
        self.momentum = chosen("momentum", momentum)
        self.weight_decay = chosen("weight_decay", weight_decay)
        self.schedule = chosen("schedule", schedule)
        self.milestones = chosen("milestones", milestones)
        self.lr_end = chosen("lr_end", lr_end)
        self.scaling = chosen("scaling", scaling)
        self.head_init = chosen("head_init", head_init)
        self.recipe = plain_recipe(recipe)

    def _rates(self) -> tuple[float, ...]:
        """The learning rates where none are given."""
        lrs = self.chosen("lrs", None, DEFAULTS["lrs"])
        if self.preset not in self.linear_in_batch_size:
            return lrs
        grown = self.batch_size / self.presets[self.preset]["batch_size"]
        return tuple(lr * grown for lr in lrs)

    def evaluate(self, subject: Subject) -> Measurements:
        recipe = recipe_for(subject, self.recipe)
        optim = ("momentum", "weight_decay", "schedule", "milestones", "lr_end")
        training = ("batch_size", "epochs", "steps", "scaling", "head_init", "seed")
        how = HeadTraining(
            # The papers' linear probes start at the full rate.
            optim={name: getattr(self, name) for name in optim} | {"warmup": 0.0},
            recipe=recipe,
            title=self.name,
            **{name: getattr(self, name) for name in training},
        )
        probe = sgd_probe(subject, self.lrs, how, self.holdout)
        classification = classified(subject, probe)
        details = {
            "lr": probe.lr,
            "held_out_top1": probe.held_out_top1,
            "lr_chosen_on": "held-out training labels" if probe.held_out_top1 else "nothing",
            "refitted_to_all_labels": False,
            "n_train": probe.n_train,
            "steps": probe.steps,
            "batch_size": probe.batch_size,
            "recipe": recipe.model_dump(),
            "loss": probe.loss,
        }
        arrays = {"weight_KD": probe.weight_KD, "bias_K": probe.bias_K}
        return Measurements(classification=classification, details=details, arrays=arrays)
