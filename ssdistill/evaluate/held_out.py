"""Choose between encoders by a probe on a split of the training labels; no test label is read."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.labels import has_several
from ssdistill.evaluate.multi_label import multi_label_metrics
from ssdistill.evaluate.probes.logistic import score
from ssdistill.evaluate.probes.several_linear import linear_probe_of_several
from ssdistill.evaluate.probes.strength import Folds, best_fit, rarest_label, stratified_split
from ssdistill.evaluate.protocols.linear import STRENGTHS
from ssdistill.evaluate.targets import as_labels, as_probe_data
from ssdistill.label_free.features import extract
from ssdistill.label_free.rows import Rows, standardization
from ssdistill.models.representation import Representation
from ssdistill.settings import Size

CHOICE_HOLDOUT, CHOICE_FOLDS = 0.1, 1
"""Of the fitted part, to choose the L2 strength by: the held-out part has no say in it."""


@dataclass(frozen=True)
class HeldOutProbe:
    """A split of training images into a part to fit a linear probe to and a part to test it on.

    The split is the same for every encoder: accuracies differ by the encoders alone.

    Attributes:
        images_NHWC: training images.
        label_N: their labels, (N,) int64, or (N, K) bool where images may have several.
        held_N: True for those that are held out.
    """

    images_NHWC: np.ndarray
    label_N: Tensor
    held_N: Tensor

    @classmethod
    def of(cls, train: Any, fraction: float, images: int, seed: int) -> "HeldOutProbe":
        """Split the training images, every class by itself.

        Args:
            train: the training images, with ``images`` and ``labels``.
            fraction: of every class, held out.
            images: how many are looked at, at most; they are evenly spaced.
            seed: of the split.

        Raises:
            UserError: labels that are missing, or that cannot be split.
        """
        stride = -(-len(train.images) // images)
        chosen = slice(seed % stride, None, stride)
        if has_several(train):
            label_N = torch.from_numpy(np.asarray(train.labels, dtype=bool))[chosen]
            strata_N = rarest_label(label_N)
        else:
            every_N = as_labels(train.labels, torch.empty(len(train.images), 0), "training labels")
            label_N = every_N[chosen]
            strata_N = label_N.unique(return_inverse=True)[1]
        held_N = stratified_split(strata_N, fraction, seed)
        if not held_N.any():
            raise UserError(
                "sweep.held_out: every class has a single training label, so none can be held out; "
                "raise sweep.held_out.images, or choose by a label-free metric"
            )
        return cls(np.asarray(train.images[chosen]), label_N, held_N)

    @property
    def counts(self) -> tuple[int, int]:
        """Training images that the probe is fitted to, and that it is tested on."""
        held = int(self.held_N.sum())
        return len(self.held_N) - held, held

    def accuracy(
        self,
        encoder: Callable[[Tensor], Representation],
        size: Size,
        device: str | torch.device | None = None,
    ) -> float:
        """Accuracy of the probe on the held-out labels; mAP where images may have several.

        Args:
            encoder: of the images; its mode and buffers stay as they are.
            size: in pixels that it is given.
            device: where to encode; default: where the encoder is.

        Returns:
            percent.

        Raises:
            UserError: features that are not finite, or labels of a single class.
        """
        z_ND = extract(encoder, self.images_NHWC, size, device=device, progress=False)
        held_N = self.held_N
        rows_N = ~self.held_N, self.held_N
        (fitted_ND, fitted), (held_ND, held) = ((z_ND[n], self.label_N[n]) for n in rows_N)
        folds = Folds(CHOICE_HOLDOUT, CHOICE_FOLDS, 0)
        if self.label_N.ndim == 2:
            labeled = fitted_ND, fitted, held_ND, held
            probe = linear_probe_of_several(*labeled, strengths=STRENGTHS, split=folds)
            return multi_label_metrics(held, probe.probabilities_NK, trained_NK=fitted).map
        labeled = as_probe_data(fitted_ND, fitted, held_ND, held)
        fitted_ND, fitted_N, held_ND, held_N, classes_K = labeled
        mean_D, scale_D = standardization(fitted_ND)
        rows_of = partial(Rows, fitted_ND, mean_D, scale_D)
        choice = best_fit(rows_of, fitted_N, len(classes_K), STRENGTHS, folds)
        top1_P, _ = score(Rows(held_ND, mean_D, scale_D, keep=0), held_N, choice.fit.theta_PKE)
        return top1_P[0].item()


def training_labels_sha256(train: Any) -> str:
    """Return the SHA-256 of the labels of the training images, (N,) or (N, K)."""
    labels = np.ascontiguousarray(train.labels)
    return hashlib.sha256(f"{labels.dtype} {labels.shape}".encode() + labels.tobytes()).hexdigest()
