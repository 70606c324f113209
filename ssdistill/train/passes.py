"""The forward and backward passes of one optimizer step: of the whole batch, or part by part."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distributed import mean_over_processes, world_size
from ssdistill.errors import UserError
from ssdistill.train.gradients import SharedLayer
from ssdistill.train.loss_scale import loss_scale_of, scaler_of
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ssdistill.train.loop import Training


def require_mean_over_images(
    task: Task, accumulate: int, batch_size: int, microbatch: int | None = None
) -> None:
    """Refuse to accumulate gradients of losses that compare the images of a batch.

    Args:
        accumulate: parts of a batch.
        batch_size: images of it, for the remedy.
        microbatch: as it is set, for the remedy.

    Raises:
        UserError: a loss would be another one; it is named.
    """
    if accumulate > 1 and task.comparing:
        part = -(-batch_size // accumulate)
        remedy = f"set accumulate=1 and microbatch={part}, which is exact for every loss"
        if microbatch:
            remedy = f"set accumulate=1 and keep microbatch={microbatch}"
        raise UserError(
            f"accumulate={accumulate}: not a mean over images: {', '.join(task.comparing)}; "
            f"{remedy}"
        )


class Passes:
    """Leave the gradient of the weighted losses of a batch in the weights of a task.

    Args:
        training: the task, and how its batches are cut. Batch norms see the images of one part.
        model: the task, as Fabric has set it up.
        fabric: runs the backward passes.

    Raises:
        UserError: parts of a task with losses that compare images.
    """

    def __init__(self, training: "Training", model: Any, fabric: "Fabric"):
        self.task, self.model, self.fabric = training.task, model, fabric
        self.microbatch, self.accumulate = training.microbatch, training.accumulate
        require_mean_over_images(
            self.task, self.accumulate, training.loader.batch_size, training.microbatch
        )

    def __call__(
        self,
        views: list[Tensor],
        batch: Batch,
        weights: Mapping[str, float],
        shared: SharedLayer | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of the whole batch, and the norms of their gradients at ``shared``.

        Args:
            weights: of the losses, by name.
            shared: where the gradient of each weighted loss is measured; None for nowhere.
        """
        losses: dict[str, Tensor] = {}
        pulls: dict[str, Tensor] = {}
        embeddings: list[list[Tensor]] = []
        scale = loss_scale_of(self.fabric)
        if world_size() > 1 and scaler_of(self.fabric) is not None:
            shared = None  # Fabric scales in its own backward pass, which averages over processes
        for fraction, part_views, part in self._parts(views, batch):
            last = part.whole is None or part.first + len(part.index_B) == part.whole
            with self._between_processes(last):
                found = self._forward(part_views, part)
                weighted = {n: fraction * weights[n] * loss for n, loss in found.items()}
                if shared is not None:
                    _add(pulls, shared.gradients(weighted, self.fabric.backward))
                self.fabric.backward(torch.as_tensor(sum(weighted.values())))
            _add(losses, {n: fraction * loss.detach() for n, loss in found.items()})
            embeddings.append(self.task.last_embeddings)
        if self.accumulate > 1:
            self.task.last_embeddings = [torch.cat(z) for z in zip(*embeddings, strict=True)]
        pulls = {name: mean_over_processes(pull) for name, pull in pulls.items()}
        return losses, {name: pull.norm() / scale for name, pull in pulls.items()}

    def _forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        with in_microbatches(self.task, len(batch.index_B), self.microbatch):
            return self.model(views, batch)

    def _between_processes(self, last: bool) -> AbstractContextManager[Any]:
        """Average the gradients of several processes once, with the last part."""
        return nullcontext() if last else self.fabric.no_backward_sync(self.model)

    def _parts(
        self, views: list[Tensor], batch: Batch
    ) -> Iterator[tuple[float, list[Tensor], Batch]]:
        """Fraction of the images, views and batch of each part."""
        count = len(batch.index_B)
        if self.accumulate == 1:
            yield 1.0, views, batch
            return
        parts = min(self.accumulate, count)
        for first, last in pairwise(count * number // parts for number in range(parts + 1)):
            part = part_of(batch, slice(first, last))
            yield (last - first) / count, [view[first:last] for view in views], part


def part_of(batch: Batch, images: slice) -> Batch:
    """Some images of a batch whose views are made."""
    rows = ("images_BHWC", "index_B", "neighbors_BHWC", "draw_B")
    found = {name: getattr(batch, name) for name in rows}
    cut: dict[str, Any] = {n: None if x is None else x[images] for n, x in found.items()}
    cut["outputs"] = {name: rows[images] for name, rows in batch.outputs.items()}
    return replace(batch, **cut, crops={}, first=images.start, whole=len(batch.index_B))


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
