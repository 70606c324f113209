"""Optimizers, parameter groups and learning-rate schedules."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from ssdistill.errors import UserError, nearest
from ssdistill.settings import Fraction, NonNegative, OpenFraction, Positive, Settings
from ssdistill.train.lars import LARS

LARGEST = 1e6
"""Maximum learning rate and weight decay; optimizers overflow on far larger ones."""
Rate = Annotated[float, Field(gt=0, le=LARGEST)]
Decay = Annotated[float, Field(ge=0, le=LARGEST)]


class OptimSettings(Settings):
    """Settings of the optimizer and its schedule.

    Args:
        kind: ``sgd``, ``adamw``, or ``lars`` (arXiv:1708.03888).
        lr: peak learning rate, as used (never rescaled by the batch size).
        weight_decay: on weights only; biases and normalization parameters get none.
        weight_decay_end: weight decay at the last step, reached by a cosine; null keeps it.
        decay_all: decay biases and normalization parameters too; not for ``lars``.
        momentum: of ``sgd`` and ``lars``.
        betas: of ``adamw``.
        trust_coefficient: LARS's eta.
        clip_lr: LARS's local rate is the rate of a layer, ``lr`` only its upper bound.
        clip_grad_norm: largest global gradient norm, or null for no clipping.
        schedule: ``constant``, ``cosine`` (to ``lr_end``), ``step`` (times ``gamma`` at each of
            ``milestones``) or ``inverse_time`` (lr / (1 + decay * progress)).
        warmup: fraction of the training over which the rate rises linearly.
        lr_start: first learning rate of the warm-up as a fraction of ``lr``; null is one even step.
        lr_end: last learning rate of ``cosine`` as a fraction of ``lr``.
        milestones: fractions of the training.
        gamma: factor at a milestone.
        decay: strength of ``inverse_time``.
        constant: modules by name (``predictor``) whose rate stays at ``lr`` throughout.
    """

    kind: Literal["sgd", "adamw", "lars"] = "adamw"
    lr: Rate = 2e-3
    weight_decay: Decay = 1e-4
    weight_decay_end: Decay | None = None
    decay_all: bool = False
    momentum: Fraction = 0.9
    betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999)
    trust_coefficient: Positive = 1e-3
    clip_lr: bool = False
    clip_grad_norm: Positive | None = None
    schedule: Literal["constant", "cosine", "step", "inverse_time"] = "cosine"
    warmup: Fraction = 0.05
    lr_start: Fraction | None = None
    lr_end: Fraction = 0.0
    milestones: tuple[OpenFraction, ...] = (0.6, 0.8)
    gamma: Rate = 0.1
    decay: NonNegative = 9.0
    constant: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "OptimSettings":
        if self.kind == "lars" and self.decay_all:
            raise ValueError("decay_all requires sgd or adamw; lars never decays vectors")
        if self.kind != "lars" and self.clip_lr:
            raise ValueError(f"clip_lr requires lars, got {self.kind}")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Hashes of stages depend on the dump: a setting that came later must not change those
        # of the trainings that do without it.
        later = {
            "weight_decay_end": None,
            "decay_all": False,
            "clip_lr": False,
            "lr_start": None,
            "constant": (),
        }
        unused = {name for name, default in later.items() if getattr(self, name) == default}
        return {name: value for name, value in dump(self).items() if name not in unused}


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    decay_all: bool = False,
    constant: tuple[str, ...] = (),
    rates: Mapping[str, float] | None = None,
) -> list[dict]:
    """Group trainable parameters into decayed weights and undecayed vectors (biases, norms).

    Parameters of the submodules named in ``constant`` come in groups of their own, and so do
    those of each value in ``rates``, multipliers of the learning rate by parameter name.

    Raises:
        UserError: for a name in ``constant`` below which nothing can be trained.
        ValueError: for a name in ``rates`` that no parameter has.
    """
    rates = rates or {}
    if unknown := rates.keys() - {name for name, _ in module.named_parameters()}:
        raise ValueError(f"rates: unknown parameter '{sorted(unknown)[0]}'; remove it")
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for path in constant:
        if not any(_inside(name, path) for name in trainable):
            known = sorted({name.split(".")[0] for name in trainable})
            raise UserError(
                f"optim.constant: no trainable module '{path}'{nearest(path, known)}; "
                f"known: {', '.join(known)}"
            )
    groups = []
    for is_constant in (False, True):
        chosen = {
            name: p
            for name, p in trainable.items()
            if any(_inside(name, path) for path in constant) == is_constant
        }
        for decayed in (True, False):
            by_rate: dict[float, list[nn.Parameter]] = {}
            for name, p in chosen.items():
                if (decay_all or p.ndim > 1) == decayed:
                    by_rate.setdefault(rates.get(name, 1.0), []).append(p)
            facts = {"weight_decay": weight_decay if decayed else 0.0, "decayed": decayed}
            facts["constant"] = is_constant
            groups += [{"params": p, "rate": rate} | facts for rate, p in by_rate.items()]
    return groups


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def build_optimizer(module: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build the optimizer of all trainable parameters of ``module``, with the task's own rates."""
    groups = parameter_groups(
        module,
        settings.weight_decay,
        settings.decay_all,
        settings.constant,
        getattr(module, "rates", None),
    )
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, foreach=True)
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=True)
    return LARS(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        trust_coefficient=settings.trust_coefficient,
        clip_lr=settings.clip_lr,
    )


def set_rates(
    optimizer: torch.optim.Optimizer, settings: OptimSettings, step: int, num_steps: int
) -> float:
    """Set learning rate and weight decay of every group for this step.

    Returns:
        the learning rate of the groups that follow the schedule, at rate 1.
    """
    lr = learning_rate(settings, step, num_steps)
    for group in optimizer.param_groups:
        # A checkpoint from before there were rates has groups without one.
        group["lr"] = (settings.lr if group["constant"] else lr) * group.get("rate", 1.0)
        if group["decayed"]:
            group["weight_decay"] = weight_decay(settings, step, num_steps)
    return lr


def weight_decay(settings: OptimSettings, step: int, num_steps: int) -> float:
    """Return the weight decay of optimizer step ``step`` (from 0) of ``num_steps``."""
    if settings.weight_decay_end is None:
        return settings.weight_decay
    falling = (1 + math.cos(math.pi * step / num_steps)) / 2
    return settings.weight_decay_end + (settings.weight_decay - settings.weight_decay_end) * falling


def learning_rate(settings: OptimSettings, step: int, num_steps: int) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0) of ``num_steps``."""
    warmup_steps = round(settings.warmup * num_steps)
    if step < warmup_steps:
        if settings.lr_start is None or warmup_steps == 1:
            return settings.lr * (step + 1) / warmup_steps
        risen = step / (warmup_steps - 1)
        return settings.lr * (settings.lr_start + (1 - settings.lr_start) * risen)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if settings.schedule == "cosine":
        factor = settings.lr_end + (1 - settings.lr_end) * (1 + math.cos(math.pi * progress)) / 2
    elif settings.schedule == "step":
        passed = sum(step >= milestone * num_steps for milestone in settings.milestones)
        factor = settings.gamma**passed
    elif settings.schedule == "inverse_time":
        factor = 1 / (1 + settings.decay * progress)
    else:
        factor = 1.0
    return settings.lr * factor
