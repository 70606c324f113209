"""Which weights of a training to keep, decided without labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.store import Store
from ssdistill.evaluate.collapse import effective_rank
from ssdistill.evaluate.features import extract
from ssdistill.train.observers import Observer
from ssdistill.train.task import Task

IMAGES = 2000
"""Training images the rank is measured on, at most."""


class RankMeSelection(Observer):
    """Keeps the weights whose embeddings have the largest effective rank (arXiv:2210.02885).

    Every so often, and after the last step, RankMe is measured on a fixed part of the unlabeled
    training images under the evaluation view, the encoder in eval mode. When the training ends
    the encoder, and the projector it is trained with, get the weights back that did best; of
    equals the earliest. ``select/effective_rank`` is the largest value so far, ``select/step``
    the optimizer steps these weights have seen.

    A rank compares well only what was trained alike, as the states of one training are; it can
    be large before anything is learnt, so nothing is measured before the first share has passed.

    Args:
        store: the training images.
        num_steps: optimizer steps of the training.
        every: share of the training between two measurements.
        seed: of the choice of images, which are evenly spread over the store.
    """

    name = "selection"

    def __init__(self, store: Store, num_steps: int, every: float, seed: int):
        self.images_NHWC = spread(store.images, IMAGES, seed)
        self.num_steps, self.interval = num_steps, max(1, round(every * num_steps))
        self.rank, self.step = -float("inf"), 0
        self.weights: dict[str, dict[str, Tensor]] = {}

    def after_step(self, step: int, batch: Batch, task: Task) -> dict[str, float]:
        done = step + 1
        if done % self.interval == 0 or done == self.num_steps:
            rank = self._measure(task)
            # False for NaN.
            if rank > self.rank:
                self.rank, self.step = rank, done
                self.weights = {name: _kept(module) for name, module in _exported(task).items()}
        return self._metrics()

    def after_training(self, task: Task) -> dict[str, float]:
        """Give the task the kept weights."""
        for name, weights in self.weights.items():
            _exported(task)[name].load_state_dict(weights)
        return self._metrics()

    def state_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rank, self.step, self.weights = state["rank"], state["step"], state["weights"]

    def _measure(self, task: Task) -> float:
        # No bar: that of the training is on the terminal already.
        encoder, _ = task.exported
        size = encoder.spec.image_size
        return effective_rank(extract(encoder, self.images_NHWC, size, progress=False))

    def _metrics(self) -> dict[str, float]:
        if not self.weights:
            return {}
        return {"select/effective_rank": self.rank, "select/step": self.step}


def spread(images_NHWC: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """At most ``wanted`` images, evenly spread, the first one chosen by ``seed``; not a copy."""
    stride = -(-len(images_NHWC) // wanted)
    return images_NHWC[seed % stride :: stride]


def _exported(task: Task) -> dict[str, nn.Module]:
    """The parts of a task that outlive its training."""
    encoder, projector = task.exported
    found = {"encoder": encoder, "projector": projector}
    return {name: module for name, module in found.items() if module is not None}


def _kept(module: nn.Module) -> dict[str, Tensor]:
    """A copy that later steps leave alone, out of the device's memory."""
    return {name: t.to("cpu", copy=True) for name, t in module.state_dict().items()}
