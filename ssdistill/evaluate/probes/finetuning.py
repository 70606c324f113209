"""Fine-tune a copy of the encoder with a linear layer on labels."""

import copy
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.layer_decay import decayed_rates
from ssdistill.evaluate.probes.supervised import (
    LabeledTraining,
    SupervisedResult,
    first_weights,
    fit_with_labels,
)
from ssdistill.evaluate.subject import Subject
from ssdistill.evaluate.targets import as_targets
from ssdistill.label_free.features import extract
from ssdistill.train.optim import OptimSettings
from ssdistill.train.task import Task


@dataclass(frozen=True)
class FineTuning(LabeledTraining):
    """How an encoder is fine-tuned.

    Attributes:
        layer_decay: see :func:`~ssdistill.evaluate.probes.layer_decay.decayed_rates`.
        label_smoothing: fraction of the target spread over all classes (arXiv:1512.00567).
        fraction: of the training labels, see :func:`draw_fraction`.
    """

    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    fraction: float = 1.0
    title: str = "finetune"


class FineTuningTask(Task):
    """An encoder and a linear layer, trained together.

    Args:
        target_N: class of every training image.
    """

    num_views = 1
    encoder: nn.Module
    target_N: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Linear,
        target_N: Tensor,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.encoder, self.head, self.label_smoothing = encoder, head, label_smoothing
        self.register_buffer("target_N", target_N.clone(), persistent=False)
        if layer_decay != 1:
            self.rates = decayed_rates(encoder, layer_decay, prefix="encoder.")
        self.last_embeddings = []

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        logits_BK = self.head(self.encoder(views[0]).embedding_BD)
        loss = functional.cross_entropy(
            logits_BK.float(), self.target_N[batch.index_B], label_smoothing=self.label_smoothing
        )
        return {"cross_entropy": loss}

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        return {"cross_entropy": 1.0}


def finetune(subject: Subject, how: FineTuning) -> SupervisedResult:
    """Train a copy of the encoder with a linear layer on top, and test it after the last step.

    Batch norms learn in training mode and are tested with their running statistics. The
    subject's own encoder stays as it is.

    Raises:
        UserError: a file for a runtime, nothing to train, missing labels, a loss that is not
            finite.
    """
    began = time.perf_counter()
    encoder = trainable_copy(subject.network("finetune"), subject.name)
    target_N, _, classes_K = as_targets(subject.labels("train"), subject.labels("test"))
    rows_M = draw_fraction(target_N, how.fraction, how.seed)
    batch_size, num_steps = how.length(len(rows_M))
    encode = {"image_size": subject.image_size, "precision": subject.precision}
    width = extract(encoder, subject.test.images[:1], progress=False, **encode).shape[1]
    head = cast("nn.Linear", nn.utils.skip_init(nn.Linear, width, len(classes_K)))
    for parameter, drawn in zip(
        head.parameters(),
        first_weights(how.head_init, len(classes_K), width, how.seed),
        strict=True,
    ):
        parameter.data = drawn
    loss = fit_with_labels(
        FineTuningTask(encoder, head, target_N, how.layer_decay, how.label_smoothing),
        subject,
        rows_M,
        how,
        OptimSettings(**how.optim),
        precision="bf16-mixed" if subject.precision == "bf16" else "32-true",
    )
    test_ND = extract(
        encoder,
        subject.test.images,
        batch_size=subject.batch_size,
        progress=subject.progress,
        team=subject.team,
        **encode,
    )
    with torch.no_grad():
        logits_NK = head.cpu()(test_ND)
    return SupervisedResult(
        classes=classes_K.numpy(),
        probabilities_NK=logits_NK.double().softmax(1).numpy(),
        n_train=len(rows_M),
        steps=num_steps,
        batch_size=batch_size,
        loss=loss,
        seconds=time.perf_counter() - began,
    )


def trainable_copy(encoder: nn.Module, name: str) -> nn.Module:
    """A copy in float32 of which every weight is trained.

    Raises:
        UserError: it has no weights of floating point.
    """
    copied = copy.deepcopy(encoder).float()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    if not any(parameter.requires_grad for parameter in copied.parameters()):
        raise UserError(f"finetune: '{name}' has no trainable weights; remove this protocol")
    return copied


def draw_fraction(target_N: Tensor, fraction: float, seed: int) -> Tensor:
    """Positions of ``fraction`` of every class's images, at least one each, ascending.

    Of two fractions drawn with one seed the smaller is part of the larger.
    """
    rng, label_N = np.random.default_rng(seed), target_N.cpu().numpy()
    drawn = []
    for label in np.unique(label_N):
        rows = rng.permutation(np.flatnonzero(label_N == label))
        drawn.append(rows[: max(1, round(fraction * len(rows)))])
    return torch.from_numpy(np.sort(np.concatenate(drawn)))
