"""Linear classifiers trained by SGD on augmented views through a frozen encoder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.sgd_heads import Heads, HeadsTask
from ssdistill.evaluate.probes.strength import stratified_split
from ssdistill.evaluate.probes.supervised import (
    LabeledTraining,
    SupervisedResult,
    first_weights,
    fit_with_labels,
    home_of,
)
from ssdistill.evaluate.subject import Subject
from ssdistill.evaluate.targets import as_probe_data
from ssdistill.label_free.features import evaluating
from ssdistill.label_free.rows import piece_rows, standardization
from ssdistill.models.representation import Representation
from ssdistill.train.optim import OptimSettings

Scaling = Literal["raw", "standard", "unit_standard"]


@dataclass(frozen=True)
class HeadTraining(LabeledTraining):
    """How heads are trained; ``optim`` without ``kind``, ``lr`` and ``decay_all``.

    Weight decay shrinks biases too, as it does in the papers' code.

    Attributes:
        scaling: of the features. ``standard``: mean 0 and deviation 1 over all training
            images under the evaluation view; ``unit_standard``: to length 1 before (CompRess).
    """

    scaling: Scaling = "raw"
    title: str = "linear_sgd"


@dataclass(frozen=True, eq=False, kw_only=True)
class SGDProbe(SupervisedResult):
    """Result of the heads; ``loss`` is summed over all heads.

    Attributes:
        lr: learning rate of the head that is reported.
        held_out_top1: accuracy in percent on the held-out training labels by learning rate
            (empty: there was no choice).
        weight_KD, bias_K: that head, for scaled features.
    """

    lr: float
    held_out_top1: dict[float, float]
    weight_KD: Tensor = field(repr=False)
    bias_K: Tensor = field(repr=False)


def sgd_probe(
    subject: Subject, lrs: Sequence[float], how: HeadTraining, holdout: float = 0.1
) -> SGDProbe:
    """Train one head per learning rate, choose among them on training labels, and test that one.

    With several learning rates all heads learn from the same batches of the training images
    that are not held out. The best held-out accuracy wins, equal ones are told apart by held-out
    cross-entropy, and the chosen head is tested as it is: it is not trained again on all labels.
    Held-out and test images are seen under the evaluation view.

    Args:
        lrs: learning rates, as used.
        holdout: fraction of every class's training labels held out where there is a choice.

    Raises:
        UserError: what every probe refuses, and classes too small to hold anything out.
    """
    began = time.perf_counter()
    train_ND, target_N, test_ND, _, classes_K = as_probe_data(*subject.probe_data())
    held_N = torch.zeros_like(target_N, dtype=torch.bool)
    if len(lrs) > 1:
        held_N = stratified_split(target_N, holdout, how.seed)
        if not held_N.any():
            raise UserError(
                f"{how.title}: every class has one training label only, so no learning rate can "
                "be chosen; add labels, or set a single rate in lrs"
            )
    rows_M = (~held_N).nonzero()[:, 0]
    heads, loss = train_heads(subject, train_ND, target_N, rows_M, lrs, how)
    best, held_out_top1 = 0, {}
    if len(lrs) > 1:
        best, held_out_top1 = _choose(heads, train_ND, target_N, held_N, lrs)
    heads.keep(best)
    batch_size, num_steps = how.length(len(rows_M))
    return SGDProbe(
        lr=lrs[best],
        held_out_top1=held_out_top1,
        classes=classes_K.numpy(),
        probabilities_NK=heads(test_ND)[:, 0].double().softmax(1).numpy(),
        n_train=len(rows_M),
        steps=num_steps,
        batch_size=batch_size,
        loss=loss,
        weight_KD=heads.weights[0].detach(),
        bias_K=heads.biases[0].detach(),
        seconds=time.perf_counter() - began,
    )


def train_heads(
    subject: Subject,
    train_ND: Tensor,
    target_N: Tensor,
    rows_M: Tensor,
    lrs: Sequence[float],
    how: HeadTraining,
) -> tuple[Heads, list[float]]:
    """Heads trained side by side, in the order of ``lrs``, and their summed loss on the way.

    Args:
        train_ND: features of all training images under the evaluation view, for the scaling.
        target_N: their classes, from 0 on.
        rows_M: positions of the images to learn from.
    """
    num_classes = int(target_N.max()) + 1
    first = first_weights(how.head_init, num_classes, train_ND.shape[1], how.seed)
    scale = _scale(train_ND, how.scaling)
    heads = Heads(len(lrs), *first, *scale, unit=how.scaling == "unit_standard")
    rates = [lr / max(lrs) for lr in lrs]
    encode = _Frozen(subject.encoder, bf16=subject.precision == "bf16")
    with evaluating(subject.encoder, home_of(subject)):
        loss = fit_with_labels(
            HeadsTask(heads, encode, target_N, rates),
            subject,
            rows_M,
            how,
            OptimSettings(kind="sgd", lr=max(lrs), decay_all=True, **how.optim),
        )
    return heads.cpu().requires_grad_(False), loss


def _scale(train_ND: Tensor, scaling: Scaling) -> tuple[Tensor | None, Tensor | None]:
    """Shift and factor of every feature."""
    if scaling == "raw":
        return None, None
    if scaling == "standard":
        mean_D, scale_D = standardization(train_ND)
        return mean_D, 1 / scale_D
    total_D = square_D = train_ND.new_zeros(train_ND.shape[1], dtype=torch.float64)
    for piece_nD in train_ND.split(piece_rows(train_ND.shape[1])):
        unit_nD = functional.normalize(piece_nD, dim=1).double()
        total_D, square_D = total_D + unit_nD.sum(0), square_D + unit_nD.square().sum(0)
    mean_D = total_D / len(train_ND)
    var_D = (square_D - len(train_ND) * mean_D.square()) / (len(train_ND) - 1)
    # The 1e-5 is CompRess's and SimReg's; their variance has n - 1 below it, too.
    return mean_D.float(), (var_D.clamp(min=0) + 1e-5).rsqrt().float()


class _Frozen:
    """The encoder as a function that leaves no trace, of views to float32 features.

    No module: what trains must not count its weights among its own.
    """

    def __init__(self, encoder: Callable[[Tensor], Representation], *, bf16: bool):
        self.encoder, self.bf16 = encoder, bf16

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        cast = torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=self.bf16)
        with torch.no_grad(), cast:
            z_BD = self.encoder(x_BCHW).embedding_BD
        # A runtime may work in inference mode, and on another device than the heads.
        return z_BD.float().clone().to(x_BCHW.device)


def _choose(
    heads: Heads, train_ND: Tensor, target_N: Tensor, held_N: Tensor, lrs: Sequence[float]
) -> tuple[int, dict[float, float]]:
    """Index of the best head, and the held-out accuracy in percent by learning rate."""
    hit_P = loss_P = torch.zeros(len(lrs), dtype=torch.float64)
    held_M = held_N.nonzero()[:, 0]
    # A piece's logits are those of all heads: with many classes they are more than its features.
    for rows_m in held_M.split(max(1, piece_rows(len(lrs) * heads.weights[0].shape[0]))):
        logits_mPK = heads(train_ND[rows_m])
        target_mP = target_N[rows_m, None].expand(-1, len(lrs))
        hit_P = hit_P + (logits_mPK.argmax(2) == target_mP).double().sum(0)
        loss_mP = functional.cross_entropy(logits_mPK.mT, target_mP, reduction="none")
        loss_P = loss_P + loss_mP.double().sum(0)
    best = min(range(len(lrs)), key=lambda p: (-hit_P[p].item(), loss_P[p].item()))
    return best, dict(zip(lrs, (100 * hit_P / len(held_M)).tolist(), strict=True))
