"""Seeded batches of a store: the images of a step depend on (seed, step) alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform
from ssdistill.data.read_ahead import ReadAhead
from ssdistill.data.store import Store
from ssdistill.errors import UserError

RESIDENT_BYTES = 2 << 30
"""A store below this size is read once, into memory or onto the device; a larger one is mapped."""
_NEIGHBOR = -2
"""View number of these random draws."""


class Loader:
    """Random access to the batches of a training run.

    Every epoch is a new permutation of the store, drawn from (seed, epoch); a batch never
    crosses epochs, and images that do not fill a last batch wait for the next permutation.
    Any step can be requested at any time, so a resumed run continues where it stopped.

    Args:
        batch_size: images in a step, over all processes.
        seed: of the order, from 0.
        num_steps: optimizer steps of the whole training.
        device: where batches are put.
        world_size, rank: with several processes, each takes its slice of the same batch.
        neighbors: (N, k) rows of the store that are like each of its N images. A batch then
            also holds one of the k for every image, drawn by (seed, epoch, index).
        rows: positions in the store of the images to be seen; default all.

    Raises:
        UserError: more images in a batch than in the store, or a batch size that
            ``world_size`` does not divide.
        ValueError: neighbors that are not k rows of this store for each of its images.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        seed: int,
        num_steps: int,
        device: str | torch.device = "cpu",
        *,
        world_size: int = 1,
        rank: int = 0,
        neighbors: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ):
        rows = np.arange(len(store)) if rows is None else rows
        if batch_size > len(rows):
            raise UserError(
                f"batch_size={batch_size} exceeds the {len(rows)} training images; lower batch_size"
            )
        if batch_size % world_size:
            raise UserError(
                f"batch_size={batch_size} is not divisible by the number of processes "
                f"({world_size})"
            )
        self.batch_size, self.seed, self.num_steps = batch_size, seed, num_steps
        self.device = torch.device(device)
        self.steps_per_epoch = len(rows) // batch_size
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        # Two are kept: the prefetch may be one epoch ahead.
        self._order = lru_cache(maxsize=2)(
            lambda epoch: rows[np.random.default_rng((seed, epoch)).permutation(len(rows))]
        )
        self._neighbors_NK = neighbors
        if neighbors is not None:
            _check_neighbors(neighbors, len(store))
        self._announce = ReadAhead(store.images)
        self._images_NHWC: np.ndarray = np.asarray(store.images)
        self._resident_NHWC: Tensor | None = None
        if self._images_NHWC.nbytes < RESIDENT_BYTES:
            self._images_NHWC = np.array(self._images_NHWC)
            self._announce = ReadAhead(self._images_NHWC)
            if self.device.type != "cpu":
                self._resident_NHWC = torch.from_numpy(self._images_NHWC).to(self.device)

    def batch(self, step: int) -> Batch:
        """Return the batch of one step, from 0; with several processes, this process's slice."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        rows_B = self._order(epoch)[start : start + self.batch_size][self._mine]
        batch = Batch(*self._pixels(rows_B), epoch, step, self.num_steps)
        if self._neighbors_NK is not None:
            batch.neighbors_BHWC, _ = self._pixels(self._neighbors_of(rows_B, epoch))
        return batch

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield batches from ``start_step`` to the end; a thread prefetches the next one."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
            ahead = thread.submit(self.batch, start_step)
            for step in range(start_step, self.num_steps):
                ready = ahead.result()
                ahead = thread.submit(self.batch, step + 1)
                yield ready

    def _neighbors_of(self, rows_B: np.ndarray, epoch: int) -> np.ndarray:
        """Return the row of one neighbor of each image."""
        number_B = uniform(self.seed, epoch, torch.from_numpy(rows_B), _NEIGHBOR, 1)[:, 0]
        choice_B = (number_B * self._neighbors_NK.shape[1]).long().numpy()
        return self._neighbors_NK[rows_B, choice_B]

    def _pixels(self, rows_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return pixels and indices of some rows, on the device."""
        index_B = self._to_device(torch.from_numpy(rows_B.astype(np.int64)))
        if self._resident_NHWC is not None:
            return self._resident_NHWC.index_select(0, index_B), index_B
        return self._to_device(self._gather(rows_B)), index_B

    def _gather(self, rows_B: np.ndarray) -> Tensor:
        # numpy copies whole rows; torch.index_select on uint8 is ten times slower on a CPU.
        shape = (len(rows_B), *self._images_NHWC.shape[1:])
        images_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        self._announce(rows_B)
        # Any mode but "raise" writes straight into `out`; no row here needs clipping.
        np.take(self._images_NHWC, rows_B, axis=0, out=images_BHWC.numpy(), mode="clip")
        return images_BHWC

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._pinned and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=self._pinned)

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
