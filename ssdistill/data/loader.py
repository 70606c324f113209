"""Seeded batches of images; the batch of a step depends only on (seed, step)."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.batch import Batch, Crops
from ssdistill.data.counter_rng import uniform
from ssdistill.data.extra import PlannedView
from ssdistill.data.image_color import ImageColor, colors_of
from ssdistill.data.image_set import ImageSet
from ssdistill.data.order import shuffled
from ssdistill.data.originals import Originals
from ssdistill.data.read_ahead import ReadAhead
from ssdistill.data.view_plan import ViewPlan
from ssdistill.data.weighting import WeightedOrder
from ssdistill.errors import UserError

RESIDENT_BYTES = 2 << 30
"""A store of fewer bytes is loaded into memory or onto the device; a larger one is mapped."""
_NEIGHBOR = -2
"""View number for random draws of neighbors."""


class Loader:
    """Random access to the batches of a training run.

    Every epoch is a new permutation of the images, drawn from (seed, epoch). Batches do not cross
    epochs; images left over after the last full batch are dropped from that epoch. Any step can
    be requested at any time, so a resumed run continues where it stopped. For originals, a batch
    holds crops for its views instead of images.

    Args:
        store: the images.
        batch_size: images per step, over all processes.
        seed: of the order, from 0.
        num_steps: optimizer steps of the whole training.
        device: of the batches.
        world_size, rank: number and index of processes; each takes its slice of a batch.
        neighbors: (N, k) rows of the nearest neighbors of the N images. A batch then also holds
            one neighbor of every image, drawn by (seed, epoch, index).
        rows: positions in the store of the images to use; default all.
        weights: (N,) by which images are drawn, with replacement; None for a new permutation of
            all of them in every epoch.
        ahead: batches to prefetch, which are held in memory.

    Attributes:
        recorded: returns recorded outputs of teachers, (B, W) int16 by name, for rows of images in
            an epoch; None if there are none.

    Raises:
        UserError: a batch exceeds the number of images, or its size is not divisible by
            ``world_size``.
        ValueError: ``neighbors`` are not (N, k) rows of this store.
    """

    def __init__(
        self,
        store: ImageSet,
        batch_size: int,
        seed: int,
        num_steps: int,
        device: str | torch.device = "cpu",
        *,
        world_size: int = 1,
        rank: int = 0,
        neighbors: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        ahead: int = 1,
    ):
        count = len(store) if rows is None else len(rows)
        if batch_size > count:
            raise UserError(
                f"batch_size={batch_size} exceeds the {count} training images; lower batch_size"
            )
        self.batch_size, self.seed, self.num_steps = batch_size, seed, num_steps
        self.device, self.ahead = torch.device(device), ahead
        self.steps_per_epoch = count // batch_size
        self.take_part(rank, world_size)
        self._count, self._rows, self.weights = count, rows, weights
        chosen = weights if weights is None or rows is None else weights[rows]
        self._weighted = None if chosen is None else WeightedOrder(chosen)
        # Cache two: prefetching may be one epoch ahead.
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(count)
        )
        self._neighbors_NK = neighbors
        if neighbors is not None:
            _check_neighbors(neighbors, len(store))
        self.recorded: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None = None
        self._originals = store if isinstance(store, Originals) else None
        if self._originals is None:
            self._load(store)

    def _load(self, store: ImageSet) -> None:
        # Arrays given to an evaluation have no `stored`.
        pixels = store.stored if isinstance(store, ImageSet) else store.images
        self._announce = ReadAhead(pixels)
        self._images_NHWC: np.ndarray = np.asarray(pixels)
        self._resident_NHWC: Tensor | None = None
        if self._images_NHWC.nbytes < RESIDENT_BYTES:
            shared = isinstance(store, ImageSet)
            self._images_NHWC = store.resident if shared else np.array(pixels)
            self._announce = ReadAhead(self._images_NHWC)
            if self.device.type != "cpu":
                self._resident_NHWC = torch.from_numpy(self._images_NHWC).to(self.device)

    def take_part(self, rank: int, world_size: int) -> None:
        """Load the part of process ``rank`` of every batch, of ``world_size`` equal parts.

        Raises:
            UserError: the batch is not divisible.
        """
        if self.batch_size % world_size:
            raise UserError(
                f"batch_size={self.batch_size} is not divisible by the number of processes "
                f"({world_size}); set a multiple of it"
            )
        size = self.batch_size // world_size
        self._mine = slice(rank * size, (rank + 1) * size)

    @property
    def remedy(self) -> str:
        """Settings that could speed up loading; empty if images are in memory."""
        if self._originals is not None:
            return (
                f"raise device.workers (now {self._originals.workers}) or device.prefetch (now "
                f"{self.ahead}), or set data.pixels=stored"
            )
        if self._images_NHWC.nbytes < RESIDENT_BYTES:
            return ""
        return f"raise device.prefetch (now {self.ahead}), or put the runs folder on a faster disk"

    def batch(self, step: int, plan: ViewPlan | None = None) -> Batch:
        """Return the batch of a step (from 0), or this process's slice of it.

        Args:
            plan: views to crop from originals; required for them, ignored otherwise.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        position_B = np.arange(start, start + self.batch_size)[self._mine]
        rows_B = self._rows_at(epoch, position_B)
        draw_B = None if self._weighted is None else torch.from_numpy(position_B)
        batch = self._batch_of_rows(rows_B, epoch, step, plan, draw_B)
        if self.recorded is not None:
            rows = self.recorded(rows_B, epoch).items()
            batch.outputs = {n: self._to_device(torch.from_numpy(x_BW)) for n, x_BW in rows}
        return batch

    def batch_of(self, rows_B: np.ndarray, epoch: int, plan: ViewPlan) -> Batch:
        """Return the images of these rows as a batch of ``epoch``, without step or order."""
        return self._batch_of_rows(rows_B, epoch, 0, plan, None)

    def _batch_of_rows(
        self,
        rows_B: np.ndarray,
        epoch: int,
        step: int,
        plan: ViewPlan | None,
        draw_B: Tensor | None,
    ) -> Batch:
        if self._originals is not None:
            return self._crops_of_originals(self._originals, rows_B, epoch, step, plan, draw_B)
        batch = Batch(*self._pixels(rows_B), epoch, step, self.num_steps)
        batch.draw_B = draw_B if draw_B is None else self._to_device(draw_B)
        if self._neighbors_NK is not None:
            batch.neighbors_BHWC, _ = self._pixels(self._neighbors_of(rows_B, epoch))
        return batch

    def iterate(self, start_step: int = 0, plan: ViewPlan | None = None) -> Iterator[Batch]:
        """Yield batches from ``start_step`` to the end, prefetching ``ahead`` of them."""
        # While one thread draws the boxes of a batch, images of another are decoded.
        threads = 1 if self._originals is None else min(2, self.ahead)
        with ThreadPoolExecutor(threads, thread_name_prefix="loader") as thread:
            last = min(start_step + self.ahead, self.num_steps)
            waiting = deque(thread.submit(self.batch, s, plan) for s in range(start_step, last))
            for step in range(start_step, self.num_steps):
                if step + self.ahead < self.num_steps:
                    waiting.append(thread.submit(self.batch, step + self.ahead, plan))
                yield waiting.popleft().result()

    def _rows_at(self, epoch: int, position_B: np.ndarray) -> np.ndarray:
        """Return the rows of images at the given positions of an epoch."""
        if self._weighted is not None:
            chosen_B = self._weighted.rows(position_B, self.seed, epoch)
        elif self._originals is None:
            chosen_B = self._order(epoch)[position_B]
        else:
            chosen_B = shuffled(position_B, self._count, self.seed, epoch)
        return chosen_B if self._rows is None else self._rows[chosen_B]

    def _crops_of_originals(
        self,
        originals: Originals,
        rows_B: np.ndarray,
        epoch: int,
        step: int,
        plan: ViewPlan | None,
        draw_B: Tensor | None,
    ) -> Batch:
        """Crop the views of a batch; views of neighbors are drawn by their images' indices."""
        if plan is None:
            raise ValueError("originals require a view plan; pass plan to batch() or iterate()")
        index_B = torch.from_numpy(rows_B.astype(np.int64))
        number_B = plan.numbers(index_B, draw_B)
        crops = self._crops(originals, plan, plan.plain, epoch, number_B, rows_B)
        if plan.of_neighbors and self._neighbors_NK is not None:
            near_B = self._neighbors_of(rows_B, epoch)
            crops |= self._crops(originals, plan, plan.of_neighbors, epoch, number_B, near_B)
        device_B = self._to_device(index_B)
        draw_B = None if draw_B is None else self._to_device(draw_B)
        return Batch(None, device_B, epoch, step, self.num_steps, crops=crops, draw_B=draw_B)

    def _crops(
        self,
        originals: Originals,
        plan: ViewPlan,
        views: list[PlannedView],
        epoch: int,
        index_B: Tensor,
        rows_B: np.ndarray,
    ) -> dict[int, Crops]:
        height_B, width_B = (torch.from_numpy(side_B) for side_B in originals.sizes(rows_B))
        drawn = [plan.draw(view, epoch, index_B, height_B, width_B) for view in views]
        sizes = [view.size for view in views]
        colors: list[list[ImageColor] | None] = [None] * len(views)
        if self.device.type == "cpu":
            count = originals.form.count
            colors = [colors_of(p, count, size) for p, size in zip(drawn, sizes, strict=True)]
        pixels = originals.cut(rows_B, [params.boxes for params in drawn], sizes, colors)
        return {
            view.number: Crops(self._to_device(x_BCHW), params.to(self.device), own is not None)
            for view, x_BCHW, params, own in zip(views, pixels, drawn, colors, strict=True)
        }

    def _neighbors_of(self, rows_B: np.ndarray, epoch: int) -> np.ndarray:
        """Return the row of one random neighbor of each image."""
        assert self._neighbors_NK is not None
        number_B = uniform(self.seed, epoch, torch.from_numpy(rows_B), _NEIGHBOR, 1)[:, 0]
        choice_B = (number_B * self._neighbors_NK.shape[1]).long().numpy()
        return self._neighbors_NK[rows_B, choice_B]

    def _pixels(self, rows_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return pixels and indices of the given rows, on the device."""
        index_B = self._to_device(torch.from_numpy(rows_B.astype(np.int64)))
        if self._resident_NHWC is not None:
            return self._resident_NHWC.index_select(0, index_B), index_B
        return self._to_device(self._gather(rows_B)), index_B

    def _gather(self, rows_B: np.ndarray) -> Tensor:
        # numpy copies whole rows; on a CPU, torch.index_select on uint8 is ten times slower.
        shape = (len(rows_B), *self._images_NHWC.shape[1:])
        images_BHWC = torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned)
        self._announce(rows_B)
        # Any mode but "raise" writes directly into `out`; no row is ever clipped.
        np.take(self._images_NHWC, rows_B, axis=0, out=images_BHWC.numpy(), mode="clip")
        return images_BHWC

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._pinned and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=self._pinned)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint8 if self._images_NHWC.dtype == np.uint8 else torch.float32

    @property
    def _pinned(self) -> bool:
        return self.device.type == "cuda"


def _check_neighbors(neighbors_NK: np.ndarray, num_images: int) -> None:
    shape, dtype = neighbors_NK.shape, neighbors_NK.dtype
    if dtype.kind not in "iu" or len(shape) != 2 or shape[0] != num_images or shape[1] == 0:
        raise ValueError(
            f"neighbors must be integers of shape ({num_images}, k), got {dtype} {shape}"
        )
    if neighbors_NK.min() < 0 or neighbors_NK.max() >= num_images:
        raise ValueError(f"neighbors must be image indices from 0 to {num_images - 1}")
