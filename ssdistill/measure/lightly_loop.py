"""SimCLR as lightly's documentation trains it in plain PyTorch, to compare speeds with.

Its transform in worker processes, its projection head and its loss, both views encoded one after
the other, in float32 (https://docs.lightly.ai/self-supervised-learning/examples/simclr.html).
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

ReadImage = Callable[[int], np.ndarray]
"""Image ``i`` as (H, W, 3) uint8."""


class _Views(Dataset):
    """Two views of every image, made from PIL images."""

    def __init__(self, read: ReadImage, count: int, transform: Callable):
        self.read, self.count, self.transform = read, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[Tensor]:
        from PIL import Image

        return self.transform(Image.fromarray(self.read(index)))


class LightlyLoop:
    """A training that goes on where it stopped.

    Args:
        net: images (B, 3, H, W) to features (B, D); trained in place, in float32.
        width: D.
        read: an image, in a worker process.
        count: number of images.
        size: side of the views in pixels.
        batch_size: images per step.
        workers: processes that make views.
        device: of the network.
        temperature: of the loss.
    """

    def __init__(
        self,
        net: nn.Module,
        width: int,
        read: ReadImage,
        count: int,
        *,
        size: int,
        batch_size: int,
        workers: int,
        device: torch.device,
        temperature: float = 0.5,
    ):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        self.model = nn.Sequential(net, nn.Flatten(), SimCLRProjectionHead(width, width, 128))
        self.model.to(device).train()
        self.criterion, self.device = NTXentLoss(temperature=temperature), device
        # Next to zero: random images must not let a training diverge that is only timed.
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-8)
        self.loader = DataLoader(
            _Views(read, count, SimCLRTransform(input_size=size)),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.batch_size = batch_size
        self.queued = 2 * workers
        self._batches = self._endless()

    def turn(self, steps: int) -> float:
        """Return images per second over ``steps`` steps.

        Batches that the workers have prepared since the last turn are used up first, untimed.
        """
        for _ in range(self.queued + 1):
            self._step()
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._wait()
        return self.batch_size * steps / (time.perf_counter() - began)

    def _endless(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def _step(self) -> None:
        x0_BCHW, x1_BCHW = (x.to(self.device, non_blocking=True) for x in next(self._batches))
        loss = self.criterion(self.model(x0_BCHW), self.model(x1_BCHW))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
