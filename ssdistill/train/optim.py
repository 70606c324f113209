"""Optimizers, parameter groups and learning-rate schedules."""

import math
from typing import Literal

import torch
from lightly.utils.lars import LARS
from pydantic import model_validator
from torch import nn

from ssdistill.settings import Fraction, NonNegative, OpenFraction, Positive, Settings


class OptimSettings(Settings):
    """How parameters move.

    Args:
        kind: ``sgd``, ``adamw``, or ``lars`` (arXiv:1708.03888).
        lr: peak learning rate, as used (never rescaled by the batch size).
        weight_decay: on weights only; biases and normalisation parameters get none.
        momentum: of ``sgd`` and ``lars``.
        betas: of ``adamw``.
        trust_coefficient: LARS's eta.
        clip_grad_norm: largest global gradient norm, or null for no clipping.
        schedule: ``constant``, ``cosine`` (to ``lr_end``), ``step`` (times ``gamma`` at each of
            ``milestones``) or ``inverse_time`` (lr / (1 + decay * share)).
        warmup: share of the training over which the rate rises linearly from 0.
        lr_end: last learning rate of ``cosine`` as a share of ``lr``.
        milestones: shares of the training.
        gamma: factor at a milestone.
        decay: strength of ``inverse_time``.
    """

    kind: Literal["sgd", "adamw", "lars"] = "adamw"
    lr: Positive = 2e-3
    weight_decay: NonNegative = 1e-4
    momentum: Fraction = 0.9
    betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999)
    trust_coefficient: Positive = 1e-3
    clip_grad_norm: Positive | None = None
    schedule: Literal["constant", "cosine", "step", "inverse_time"] = "cosine"
    warmup: Fraction = 0.05
    lr_end: Fraction = 0.0
    milestones: tuple[OpenFraction, ...] = (0.6, 0.8)
    gamma: Positive = 0.1
    decay: NonNegative = 9.0

    @model_validator(mode="after")
    def _lars_needs_decay(self) -> "OptimSettings":
        # lightly's LARS leaves out the layer-wise scaling where weight_decay is 0: plain SGD.
        if self.kind == "lars" and self.weight_decay == 0:
            raise ValueError("lars needs weight_decay above 0: without it LARS is plain SGD")
        return self


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Decayed weights, and undecayed vectors (biases, norm scales), of what can be trained."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """The optimizer over every trainable parameter of ``module``."""
    groups = parameter_groups(module, settings.weight_decay)
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, foreach=True)
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=True)
    return LARS(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        trust_coefficient=settings.trust_coefficient,
    )


def learning_rate(settings: OptimSettings, step: int, num_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``num_steps``."""
    warmup_steps = round(settings.warmup * num_steps)
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if settings.schedule == "cosine":
        factor = settings.lr_end + (1 - settings.lr_end) * (1 + math.cos(math.pi * share)) / 2
    elif settings.schedule == "step":
        passed = sum(step >= milestone * num_steps for milestone in settings.milestones)
        factor = settings.gamma**passed
    elif settings.schedule == "inverse_time":
        factor = 1 / (1 + settings.decay * share)
    else:
        factor = 1.0
    return settings.lr * factor
