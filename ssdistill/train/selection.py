"""Select the weights of a training run without labels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.image_set import ImageSet
from ssdistill.data.recipes import ViewRecipe
from ssdistill.distributed import ASSEMBLED, rank
from ssdistill.label_free.collapse import effective_rank
from ssdistill.label_free.features import extract
from ssdistill.label_free.lidar import lidar, view_embeddings
from ssdistill.train.observers import Observer
from ssdistill.train.task import Task
from ssdistill.train.watch import Following, as_in_first, sample_indices

IMAGES = 2000
"""Maximum number of training images for effective rank and agreement."""
LIDAR_IMAGES, LIDAR_VIEWS = 500, 10
"""Training images for LiDAR, and augmented views of each."""


class Criterion(ABC):
    """A label-free score that is large for a good encoder in training.

    All processes of a training measure together; only the first one's value counts.

    A subclass sets ``name``; ``select/<name>`` is the metric.
    """

    name: ClassVar[str]

    @abstractmethod
    def measure(self, task: Task) -> float:
        """Evaluate the encoder that ``task`` trains, in eval mode and without side effects."""


class EffectiveRank(Criterion):
    """RankMe of the embeddings under the evaluation view (arXiv:2210.02885).

    Args:
        store: the training images; ``IMAGES`` of them are looked at.
        seed: of the choice of images, which are evenly spread over the store.
    """

    name = "effective_rank"

    def __init__(self, store: ImageSet, seed: int):
        self.images_NHWC = store.images[sample_indices(len(store), IMAGES, seed)]

    def measure(self, task: Task) -> float:
        # No bar: that of the training is on the terminal already.
        encoder, _ = task.exported
        size, shown = encoder.spec.image_size, as_in_first(encoder)
        z_ND = extract(shown, self.images_NHWC, size, progress=False, team=ASSEMBLED)
        return effective_rank(z_ND) if rank() == 0 else math.nan


class Lidar(Criterion):
    """LiDAR of ``LIDAR_VIEWS`` augmented views, the same at every evaluation (arXiv:2312.04000).

    Args:
        store: the training images; ``LIDAR_IMAGES`` of them are looked at.
        seed: as for :class:`EffectiveRank`.
        recipe: how views are drawn.
    """

    name = "lidar"

    def __init__(self, store: ImageSet, seed: int, recipe: ViewRecipe):
        chosen = sample_indices(len(store), LIDAR_IMAGES, seed)
        self.images_NHWC, self.recipe = store.images[chosen], recipe
        self.index_N = torch.arange(len(store))[chosen]

    def measure(self, task: Task) -> float:
        encoder, _ = task.exported
        drawn = self.images_NHWC, self.index_N, self.recipe, encoder.spec.image_size
        how = {"views": range(LIDAR_VIEWS), "progress": False, "team": ASSEMBLED}
        z_VND = view_embeddings(as_in_first(encoder), *drawn, **how)
        return lidar(z_VND) if rank() == 0 else math.nan


class Agreement(Criterion):
    """Debiased linear CKA with the teacher's embeddings under the evaluation view.

    Of several teachers, with those of all side by side.

    Args:
        store: the training images; ``IMAGES`` of them are looked at.
        seed: as for :class:`EffectiveRank`.
    """

    name = "agreement"

    def __init__(self, store: ImageSet, seed: int):
        self.following = Following(store.images[sample_indices(len(store), IMAGES, seed)])

    def measure(self, task: Task) -> float:
        return self.following.cka(task)


class Selection(Observer):
    """Keep the weights with the largest value of a criterion.

    Every so often, and after the last step, the criterion is measured on a fixed part of the
    unlabeled training images, the encoder in eval mode. When the training ends the encoder, and
    the projector it is trained with, get the weights back that did best; of equals the earliest.
    ``select/<criterion>`` is the largest value so far, ``select/step`` the optimizer steps these
    weights have seen.

    Ranks compare well only what was trained alike, as the states of one training are; they can
    be large before anything is learnt, so nothing is measured before the first fraction has passed.

    Args:
        criterion: what is measured.
        num_steps: optimizer steps of the training.
        every: fraction of the training between two measurements.
    """

    name = "selection"

    def __init__(self, criterion: Criterion, num_steps: int, every: float):
        self.criterion = criterion
        self.num_steps, self.interval = num_steps, max(1, round(every * num_steps))
        self.value, self.step = -float("inf"), 0
        self.weights: dict[str, dict[str, Tensor]] = {}

    def after_step(self, step: int, batch: Batch, task: Task) -> dict[str, float]:
        steps_done = step + 1
        if steps_done % self.interval == 0 or steps_done == self.num_steps:
            value = self.criterion.measure(task)
            # False for NaN.
            if value > self.value:
                self.value, self.step = value, steps_done
                self.weights = {
                    name: _copy_state(module) for name, module in _exported(task).items()
                }
        return self._metrics()

    def after_training(self, task: Task) -> dict[str, float]:
        """Load the selected weights into the task."""
        for name, weights in self.weights.items():
            _exported(task)[name].load_state_dict(weights)
        return self._metrics()

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Checkpoints from when there was no other criterion say "rank".
        self.value = state["value"] if "value" in state else state["rank"]
        self.step, self.weights = state["step"], state["weights"]

    def _metrics(self) -> dict[str, float]:
        if not self.weights:
            return {}
        return {f"select/{self.criterion.name}": self.value, "select/step": self.step}


def _exported(task: Task) -> dict[str, nn.Module]:
    """Return the parts of a task that outlive its training."""
    encoder, projector = task.exported
    modules = {"encoder": encoder, "projector": projector}
    return {name: module for name, module in modules.items() if module is not None}


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Copy a state off the device, so that later steps do not change it."""
    return {name: t.to("cpu", copy=True) for name, t in module.state_dict().items()}
