"""Total distillation loss of a frozen student, for saliency by its gradient."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from ssdistill.train.loop import Training
from ssdistill.train.microbatch import in_microbatches

HEAD_STEPS = 30
"""Batches that train the losses' own heads before the loss is used."""
HEAD_RATE = 1e-3


def iterate_total_losses(training: Training, device: torch.device) -> Iterator[Tensor]:
    """The weighted total of one batch after the other, with a graph to the student's weights.

    Regressors and predictors begin with random weights, and through them a gradient would say
    nothing of the student: on the first ``HEAD_STEPS`` batches they alone are trained. The
    student's batch norms use their running statistics throughout.
    """
    task = training.task.to(device).train()
    student = task.encoder.eval()
    trainable = {parameter: parameter.requires_grad for parameter in student.parameters()}
    heads = [p for p in task.parameters() if p.requires_grad and p not in trainable]
    optimizer = torch.optim.AdamW(heads, HEAD_RATE) if heads else None
    student.requires_grad_(False)
    for batch in training.batches():
        if batch.step == HEAD_STEPS:
            _thaw(trainable)
        if batch.step < HEAD_STEPS and optimizer is None:
            continue
        with in_microbatches(task, len(batch.index_B), training.microbatch):
            losses = task(training.views(batch), batch)
        weights = task.weights_at(batch.step, training.loader.num_steps)
        total = cast("Tensor", sum(weights[name] * loss for name, loss in losses.items()))
        if optimizer is not None and batch.step < HEAD_STEPS:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        else:
            yield total


def _thaw(trainable: dict[nn.Parameter, bool]) -> None:
    for parameter, flag in trainable.items():
        parameter.requires_grad_(flag)
