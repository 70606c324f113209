"""Protocol ``finetune``: fine-tuning of the whole encoder on all or few labels."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ssdistill.evaluate.probes.finetuning import FineTuning, finetune
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
    Positive,
    PositiveInt,
)

DEFAULTS: dict[str, Any] = {
    "epochs": 30, "batch_size": 128, "optimizer": "adamw", "lr": 1e-3, "momentum": 0.9,
    "weight_decay": 0.05, "warmup": 0.1, "lr_end": 0.0, "layer_decay": 0.75,
    "label_smoothing": 0.0, "fraction": 1.0, "head_init": "zero",
}  # fmt: skip
"""What holds where neither the config nor a preset says otherwise; ours, not a paper's."""
SGD_LR = 0.05
"""Learning rate of SGD where none is given; that of AdamW would not get it anywhere."""

PositiveFraction = Annotated[float, Field(gt=0, le=1)]


class Finetune(Protocol):
    """Fine-tune the whole encoder with a linear layer on labels.

    A copy is trained; the encoder itself stays as it is. What is reported is the state after the
    last step, never the best epoch. Compressed PyTorch encoders train as any other, and their
    zeros and shared weights move freely; files for a runtime cannot.

    - ``lightly``: lightly's benchmarks: SGD, no layer decay. The epochs are those of ImageNet.
    - ``1pct``, ``10pct``: that fraction of the labels; all other values are the defaults here, as
      papers differ in them.

    Args:
        preset: provides the values of the settings that are not specified.
        epochs: passes over the labeled images; give this or ``steps``.
        steps: optimizer steps.
        batch_size: images a step (all there are where there are fewer). The learning rate of
            ``lightly`` is proportional to it.
        optimizer: ``adamw`` or ``sgd``.
        lr: peak learning rate, as used; by default 1e-3 for ``adamw`` and 0.05 for ``sgd``.
        momentum: of ``sgd``.
        weight_decay: of weights; biases and normalization parameters get none.
        warmup: fraction of the training over which the rate rises; it then falls by a cosine.
        lr_end: last learning rate as a fraction of the peak.
        layer_decay: factor of the learning rate from layer to layer towards the input.
        label_smoothing: fraction of the target spread over all classes.
        fraction: of every class's training labels; at least one each.
        head_init: first weights of the linear layer: ``zero``, ``normal`` (deviation 0.01) or
            ``uniform`` (PyTorch's own).
        recipe: views of the training images; ``auto`` is ``crop_flip``, or for data that has
            views of its own the crops of these.
        seed: of the draw of labels, of the order of the images, of the views, of first weights.
    """

    kind = "finetune"
    trains = True
    paper = "fine-tuning with layer decay, MAE, arXiv:2111.06377; few labels, arXiv:2002.05709"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lightly": {
            "epochs": 30, "batch_size": 256, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0,
            "warmup": 0.0, "lr_end": 1e-3, "layer_decay": 1.0, "head_init": "uniform",
        },
        "1pct": {"fraction": 0.01},
        "10pct": {"fraction": 0.1},
    }  # fmt: skip

    def __init__(
        self,
        *,
        preset: Literal["lightly", "1pct", "10pct"] | None = None,
        epochs: Positive | None = None,
        steps: PositiveInt | None = None,
        batch_size: PositiveInt | None = None,
        optimizer: Literal["adamw", "sgd"] | None = None,
        lr: Positive | None = None,
        momentum: Fraction | None = None,
        weight_decay: NonNegative | None = None,
        warmup: Fraction | None = None,
        lr_end: Fraction | None = None,
        layer_decay: PositiveFraction | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None,
        fraction: PositiveFraction | None = None,
        head_init: HeadInit | None = None,
        recipe: RecipeSetting = None,
        seed: NonNegativeInt = 0,
    ):
        def chosen(name: str, value: Any) -> Any:
            return self.chosen(name, value, DEFAULTS[name])

        self.preset, self.seed, self.recipe = preset, seed, plain_recipe(recipe)
        self.epochs, self.steps = length_of(self, epochs, steps, DEFAULTS["epochs"])
        self.batch_size = chosen("batch_size", batch_size)
        self.optimizer = chosen("optimizer", optimizer)
        self.lr = self._rate() if lr is None else lr
        self.momentum = chosen("momentum", momentum)
        self.weight_decay = chosen("weight_decay", weight_decay)
        self.warmup, self.lr_end = chosen("warmup", warmup), chosen("lr_end", lr_end)
        self.layer_decay = chosen("layer_decay", layer_decay)
        self.label_smoothing = chosen("label_smoothing", label_smoothing)
        self.fraction = chosen("fraction", fraction)
        self.head_init = chosen("head_init", head_init)

    def _rate(self) -> float:
        """The learning rate where none is given."""
        usual = {"adamw": DEFAULTS["lr"], "sgd": SGD_LR}[self.optimizer]
        preset = self.presets.get(self.preset or "", {})
        if preset.get("optimizer") != self.optimizer:
            return usual
        return preset["lr"] * self.batch_size / preset["batch_size"]

    def evaluate(self, subject: Subject) -> Measurements:
        recipe = recipe_for(subject, self.recipe)
        optim = ("lr", "momentum", "weight_decay", "warmup", "lr_end")
        training = (
            "batch_size", "epochs", "steps", "layer_decay", "label_smoothing", "fraction",
            "head_init", "seed",
        )  # fmt: skip
        how = FineTuning(
            optim={"kind": self.optimizer} | {name: getattr(self, name) for name in optim},
            recipe=recipe,
            title=self.name,
            **{name: getattr(self, name) for name in training},
        )
        trained = finetune(subject, how)
        classification = classified(subject, trained)
        details = {
            "n_train": trained.n_train,
            "steps": trained.steps,
            "batch_size": trained.batch_size,
            "recipe": recipe.model_dump(),
            "loss": trained.loss,
        }
        return Measurements(classification=classification, details=details)
