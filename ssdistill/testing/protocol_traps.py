"""Checks that a protocol makes none of the mistakes found in published evaluations.

The labels are made here; those of data sources are read in ``evaluate`` alone.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssdistill.data.views import eval_view
from ssdistill.evaluate.result import Result
from ssdistill.evaluate.subject import LabeledImages
from ssdistill.testing.candidate import Candidate, Check, demand, skip
from ssdistill.testing.protocols import found
from ssdistill.testing.tiny_subjects import SIDE, TEST, make_encoder, make_images, subject

CHOICES = (
    *("strength", "held_out_loss", "held_out_top1", "lr", "lr_chosen_on"),
    *("loss", "steps", "n_train", "layer"),
)
"""Details that tell what a protocol has chosen, which test images may not decide."""


def other_test_images() -> LabeledImages:
    """Other test images, in another order, with other labels."""
    other = make_images(7, seed=5)
    shuffled = np.random.default_rng(0).permutation(np.asarray(other.labels))
    return LabeledImages(255 - other.images, shuffled)


def nothing_is_chosen_on_test_images(
    candidate: Candidate, but: Collection[str] | None = None
) -> None:
    """With other test images, everything chosen is the same.

    Args:
        but: names of details that tell of the test images, where all others are compared.
    """
    result, details = candidate.build().run(subject(test=other_test_images())), found(candidate)
    known = details.details.keys()
    compared = known & set(CHOICES) if but is None else known - set(but)
    for name in compared:
        same = result.details[name] == details.details[name]
        demand(same, f"{name} is another with other test images")
    for name in ("weight_KD", "bias_K"):
        if name in details.arrays:
            same = torch.equal(result.arrays[name], details.arrays[name])
            demand(same, f"{name} is another with other test images")


def evaluation_mode_is_chosen(candidate: Candidate) -> None:
    """An encoder in training mode is evaluated in evaluation mode, and left in its own."""
    encoder = make_encoder().train()
    metrics = candidate.build().run(subject(encoder)).metrics
    demand(metrics == found(candidate).metrics, "an encoder in training mode has other metrics")
    left = all(module.training for module in encoder.modules())
    demand(left, "the encoder is not in training mode any more")


def _answers(result: Result) -> np.ndarray:
    if result.classification is None:
        skip("no answer per image")
    return result.classification.predictions


def labels_of_test_images_change_no_answer(candidate: Candidate) -> None:
    """Nothing is fitted to labels of test images, and nothing is chosen by them."""
    expected = _answers(found(candidate))
    permuted = np.random.default_rng(3).permutation(np.asarray(TEST.labels))
    result = candidate.build().run(subject(test=LabeledImages(TEST.images, permuted)))
    same = (_answers(result) == expected).all()
    demand(same, "answers change with the labels of the test images")


def an_answer_depends_on_its_own_image(candidate: Candidate) -> None:
    """Neither statistics of the test features nor their neighbors among themselves count."""
    expected = _answers(found(candidate))[::2]
    other = make_images(4, seed=8)
    mixed = LabeledImages(
        np.concatenate([255 - other.images, TEST.images[::2]]),
        np.concatenate([np.asarray(other.labels), np.asarray(TEST.labels)[::2]]),
    )
    result = candidate.build().run(subject(test=mixed))
    same = (_answers(result)[len(other) :] == expected).all()
    demand(same, "an answer changes with the other test images")


class Shown:
    """Counts; a deep copy is the same object."""

    def __init__(self, image_CHW: Tensor):
        self.image_CHW, self.count = image_CHW, 0

    def __deepcopy__(self, memo: object) -> "Shown":
        return self

    def note(self, x_BCHW: Tensor) -> None:
        """Count how often the image is in a batch."""
        self.count += int((x_BCHW.detach() == self.image_CHW).all((1, 2, 3)).sum())


class Watched(nn.Module):
    """An encoder that notes how often it is shown one image, copies of it included."""

    def __init__(self, encoder: nn.Module, image_HWC: np.ndarray):
        super().__init__()
        self.inner = encoder
        self.shown = Shown(eval_view(torch.from_numpy(image_HWC)[None], SIDE)[0])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x_BCHW: Tensor) -> Any:
        self.shown.note(x_BCHW)
        return self.inner(x_BCHW)


def times_test_images_are_seen(candidate: Candidate) -> int:
    """How often the encoder is shown a test image."""
    encoder = Watched(make_encoder(), TEST.images[-1])
    candidate.build().run(subject(encoder))
    return encoder.shown.count


def a_test_image_is_seen_once(candidate: Candidate) -> None:
    """No maximum over epochs can be taken of what is tested once."""
    times = times_test_images_are_seen(candidate)
    demand(times <= 1, f"test images are encoded {times} times; once is enough")


TRAPS = {
    "chosen_without_test_images": Check(nothing_is_chosen_on_test_images),
    "evaluation_mode": Check(evaluation_mode_is_chosen),
    "test_labels": Check(labels_of_test_images_change_no_answer),
    "single_answers": Check(an_answer_depends_on_its_own_image),
    "seen_once": Check(a_test_image_is_seen_once),
}
"""What no protocol does."""
