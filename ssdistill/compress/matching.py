"""Embedding matching: train a compressed module to reproduce its previous embeddings."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.compress import bar
from ssdistill.errors import UserError
from ssdistill.models.model import Model
from ssdistill.train.optim import build_optimizer, set_rates
from ssdistill.train.settings import TrainSettings

Train = Callable[[Model, Mapping[str, Model], TrainSettings], Model]


def match_embeddings(inputs: Tensor, seed: int = 0) -> Train:
    """Build a ``Context.train`` for any module, which matches its previous embeddings.

    L = mean over inputs and targets of 1 - cos(s, t) + |s - t|^2 / |t|^2: direction and length,
    both without units, so that no weight has to be chosen. In a chain the distillation losses,
    augmented views, checkpoints and records stand in its place.

    ```python
    context = Context(images, folder, original=model, train=match_embeddings(token_ids_BT))
    Recover(steps=100, batch_size=32).apply(pruned, context)
    ```

    Args:
        inputs: unlabeled inputs of the kind the model takes, stacked along the first axis.
        seed: of the order in which they are seen.

    Returns:
        ``train(student, targets, settings)``, which trains ``student`` in place.
    """

    def train(student: Model, targets: Mapping[str, Model], settings: TrainSettings) -> Model:
        return _train(student, targets, settings, inputs, seed)

    return train


def _train(
    student: Model, targets: Mapping[str, Model], settings: TrainSettings, inputs: Tensor, seed: int
) -> Model:
    for name, target in targets.items():
        if target.embed_dim != student.embed_dim:
            raise UserError(
                f"'{student.name}' has embeddings of width {student.embed_dim}, but its target "
                f"{name} of width {target.embed_dim}: match_embeddings requires equal widths"
            )
    size = min(settings.batch_size, len(inputs))
    steps = settings.num_steps(len(inputs) // size)
    generator = torch.Generator().manual_seed(seed)
    was_training, optimizer = student.training, build_optimizer(student, settings.optim)
    student.train()
    for step in bar(range(steps), f"train {student.name}"):
        set_rates(optimizer, settings.optim, step, steps)
        rows = torch.randperm(len(inputs), generator=generator)[:size]
        batch = inputs[rows].to(student.device)
        student_BD = student(batch).embedding_BD
        distances = sum(_distance(student_BD, t, batch) for t in targets.values())
        loss = cast("Tensor", distances) / len(targets)
        if not loss.isfinite():
            raise UserError(
                f"training '{student.name}': loss is {float(loss)} at step {step}; lower the "
                "learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.train(was_training)


def _distance(student_BD: Tensor, target: Model, batch: Tensor) -> Tensor:
    with torch.no_grad():
        target_BD = target.eval()(batch).embedding_BD
    angle_B = 1 - F.cosine_similarity(student_BD, target_BD)
    length_B = (student_BD - target_BD).square().sum(1) / target_BD.square().sum(1)
    return (angle_B + length_B).mean()
