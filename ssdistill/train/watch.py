"""Monitor a student's agreement with its teachers during training, without labels."""

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.image_set import ImageSet
from ssdistill.distributed import ASSEMBLED, broadcast, rank, world_size
from ssdistill.errors import UserError
from ssdistill.label_free.agreement import CKA_AT_LEAST, LinearCKA, side_by_side
from ssdistill.label_free.collapse import collapse_metrics
from ssdistill.label_free.features import extract
from ssdistill.train.observers import Observer
from ssdistill.train.task import Task

Network = TypeVar("Network", bound=nn.Module)
IMAGES = 512
"""Maximum number of training images in the sample."""
EVERY = 0.05
"""Minimum fraction of the training between two measurements."""
TRAINED_PER_LOOK, TRAINED_AT_LEAST = 50, 100
"""Training images between two measurements, and in all, per image of the sample.

A measurement encodes an image by the student; the first one also by the teacher. Training encodes
it by both and backpropagates through the student, at twice the cost, in every view. With one view
and a teacher that costs t students, the overhead is 1 / (50 (3 + t)) + t / (100 (3 + t)) of the
work: 0.5 to 1 % for any t from a small one up, and half of it with two views.
"""


def as_in_first(encoder: Network) -> Network:
    """Return an encoder in training as process 0 has it; all processes call this.

    Weights are equal in all of them, but batch statistics need not be.
    """
    if world_size() == 1:
        return encoder
    buffers = broadcast({name: x.cpu() for name, x in encoder.named_buffers()})
    if rank() == 0:
        return encoder
    encoder = copy.deepcopy(encoder)
    for name, buffer in encoder.named_buffers():
        buffer.copy_(buffers[name])
    return encoder


class Following:
    """Embeddings of fixed images under the evaluation view, by student and teachers.

    The teachers' are made at the first use; they do not change. All processes of a training encode
    together, and the first one gets the embeddings; the others have no rows.

    Args:
        images_NHWC: training images.
    """

    def __init__(self, images_NHWC: np.ndarray):
        self.images_NHWC = images_NHWC
        self.teacher_ND: Tensor | None = None

    def student(self, task: Task) -> Tensor:
        """Return the student's embeddings, (N, D), on its device."""
        encoder, _ = task.exported
        size, shown = encoder.spec.image_size, as_in_first(encoder)
        how = {"progress": False, "team": ASSEMBLED}
        return extract(shown, self.images_NHWC, size, **how).to(encoder.device)

    def cka(self, task: Task, student_ND: Tensor | None = None) -> float:
        """Return the CKA of the student with all teachers side by side; NaN if not finite.

        NaN in other processes than the first, too.

        Raises:
            UserError: fewer than four images, or a task without teachers.
        """
        if self.teacher_ND is None:
            teachers = getattr(task, "teachers", {})
            if not teachers:
                raise UserError(
                    "agreement with a teacher requires a distillation; this task has no teacher"
                )
            size = task.exported[0].spec.image_size
            how = {"progress": False, "team": ASSEMBLED}
            features = [extract(t, self.images_NHWC, size, **how) for t in teachers.values()]
            self.teacher_ND = side_by_side(features)
        if student_ND is None:
            student_ND = self.student(task)
        if rank() > 0:
            return math.nan
        cka = LinearCKA()
        cka.update(student_ND, self.teacher_ND.to(student_ND.device))
        return cka.compute()


class AgreementWatch(Observer):
    """Log ``agree/cka`` of a student with its teachers, and the metrics of a fixed sample.

    Both are of the same training images under the evaluation view, the student in eval mode, so
    that steps, and trainings of other views and batch sizes, can be compared; beside
    ``agree/cka`` these are ``collapse/sample/std``, ``collapse/sample/effective_rank`` and
    ``collapse/sample/uniformity``. Between measurements the last values are repeated.

    Measurements are so far apart (``TRAINED_PER_LOOK``) that they take less than 1 % of the
    training time. Training runs too short for that (``TRAINED_AT_LEAST``), or with fewer images
    than a CKA requires, are not measured.

    Args:
        store: the training images.
        num_steps: optimizer steps of the training.
        batch_size: images a step.
        seed: of the choice of images.
    """

    name = "agreement_watch"

    def __init__(self, store: ImageSet, num_steps: int, batch_size: int, seed: int):
        chosen = sample_indices(len(store), IMAGES, seed)
        self.following = Following(store.images[chosen])
        looked_at = len(self.following.images_NHWC)
        rare = -(-TRAINED_PER_LOOK * looked_at // batch_size)
        self.interval = max(rare, round(EVERY * num_steps))
        self.num_steps = num_steps
        enough = num_steps * batch_size >= TRAINED_AT_LEAST * looked_at
        self.looks = enough and looked_at >= CKA_AT_LEAST
        self.last_metrics: dict[str, float] = {}

    def after_step(self, step: int, batch: Batch, task: Task) -> dict[str, float]:
        steps_done = step + 1
        # Counted from the end: the last measurement is of the finished student.
        due = steps_done >= self.interval and (self.num_steps - steps_done) % self.interval == 0
        if self.looks and due:
            student_ND = self.following.student(task)
            cka = self.following.cka(task, student_ND)
            collapse = collapse_metrics(student_ND) if rank() == 0 else {}
            self.last_metrics = {
                name.replace("/", "/sample/"): value for name, value in collapse.items()
            }
            self.last_metrics["agree/cka"] = cka
        return dict(self.last_metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.last_metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_metrics = dict(state["found"])


def sample_indices(count: int, limit: int, seed: int) -> slice:
    """Choose at most ``limit`` of ``count`` images, evenly spaced, with an offset from ``seed``."""
    stride = -(-count // limit)
    return slice(seed % stride, None, stride)
