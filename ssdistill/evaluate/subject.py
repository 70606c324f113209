"""The encoder and the images that a protocol evaluates."""

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.labels import class_labels
from ssdistill.distributed import ALONE, Team
from ssdistill.errors import UserError
from ssdistill.evaluate.labels import check_pair, has_several
from ssdistill.evaluate.targets import as_labels
from ssdistill.label_free.features import Precision, extract
from ssdistill.models.representation import Representation
from ssdistill.settings import Size, as_size


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images of one split in memory; a :class:`ssdistill.data.store.Store` does as well.

    Attributes:
        images: (N, H, W, C) uint8, or float32 in [0, 1], all of one size.
        labels: (N,) integers, or (N, K) truth values for several labels per image; None without.
        class_names: by label.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)


class Subject:
    """A finished encoder and the images it is evaluated on.

    Features are extracted once per split, when a protocol first asks for them, in eval mode and
    without gradients: protocols that read features cannot change the encoder.

    Args:
        encoder: anything that maps float BCHW images in [0, 1] to a Representation.
        train, test: ``images`` and ``labels`` of the two splits.
        name: what it is called in messages and tables.
        image_size: side in pixels the encoder is given, or height and width; those of the images
            by default.
        device: where to encode and fit; default: where the encoder is.
        precision: of the encoding, ``fp32`` or ``bf16``.
        batch_size: images encoded at a time; the default is :func:`extract`'s.
        folder: where features too large for memory are kept, as ``<split>_features.npy``; by
            default a temporary one that is removed with the subject.
        memory: bytes of features of a split beyond which they are kept in a file and mapped.
        progress: bars on the terminal.
        team: processes that encode and train together; labels are read in process 0 alone.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Representation],
        train: Any,
        test: Any,
        *,
        name: str = "encoder",
        image_size: Size | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int | None = None,
        folder: str | Path | None = None,
        memory: int = 2**30,
        progress: bool = True,
        team: Team = ALONE,
    ):
        self.encoder, self.name = encoder, name
        self.splits = {"train": train, "test": test}
        height, width = test.images.shape[1:3]
        self.image_size = image_size or as_size(height, width)
        self.device, self.batch_size = device, batch_size
        self.precision: Precision = precision
        self.folder, self.memory, self.progress = folder, memory, progress
        self.team = team
        self.seconds: dict[str, float] = {}
        self._features: dict[str, Tensor] = {}
        self._scratch: Path | None = None

    @property
    def train(self) -> Any:
        """Training images, labels included."""
        return self.splits["train"]

    @property
    def test(self) -> Any:
        """Test images, labels included."""
        return self.splits["test"]

    def features(self, split: str) -> Tensor:
        """Embeddings (N, D) of the ``train`` or ``test`` images, float32.

        Raises:
            UserError: whatever :func:`ssdistill.label_free.features.extract` raises.
        """
        if split not in self._features:
            began = time.perf_counter()
            self._features[split] = self._extracted(split)
            self.seconds[split] = time.perf_counter() - began
        return self._features[split]

    def encode(self, images_NHWC: Any, progress: bool | None = None) -> Tensor:
        """Embeddings (N, D) of any images like these, encoded as :meth:`features` are.

        Args:
            progress: a bar on the terminal; by default where the subject shows them.
        """
        return self._encode(images_NHWC, torch.empty, progress)

    def _extracted(self, split: str) -> Tensor:
        """Features in memory or, where they are too many, mapped to a finished file."""
        mapped: list[Path] = []

        def room(rows: int, width: int) -> Tensor:
            if 4 * rows * width <= self.memory:
                return torch.empty(rows, width)
            mapped.append(self._room_folder() / f"{split}_features.{os.getpid()}.part")
            shape = rows, width
            z_ND = np.lib.format.open_memmap(mapped[0], "w+", np.float32, shape)
            return torch.from_numpy(z_ND)

        try:
            z_ND = self._encode(self.splits[split].images, room)
            if not mapped:
                return z_ND
            # Another subject may have the file of that name mapped: it keeps its own.
            path = mapped[0].replace(mapped[0].with_name(f"{split}_features.npy"))
            # Writing to the tensor would change neither the file nor what others map of it.
            return torch.from_numpy(np.load(path, mmap_mode="c"))
        finally:
            for path in mapped:
                path.unlink(missing_ok=True)

    def _room_folder(self) -> Path:
        if self.folder is not None:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            return Path(self.folder)
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="ssdistill_features_"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def _encode(
        self,
        images_NHWC: np.ndarray,
        out: Callable[[int, int], Tensor],
        progress: bool | None = None,
    ) -> Tensor:
        return extract(
            self.encoder,
            images_NHWC,
            self.image_size,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
            progress=self.progress if progress is None else progress,
            out=out,
            team=self.team,
        )

    def labels(self, split: str) -> Tensor:
        """Labels (N,) int64; (N, K) bool for several per image.

        Raises:
            UserError: the images have none, or neither one integer each nor 0 or 1 for each class.
        """
        data = self.splits[split]
        name = "training labels" if split == "train" else "test labels"
        labels = data.labels
        if has_several(data):
            values = np.asarray(labels)
            kept = values if values.dtype == bool else class_labels(values, name, len(data.images))
            return torch.from_numpy(kept)
        return as_labels(labels, torch.empty(len(data.images), 0), name)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels; False without labels."""
        return any(map(has_several, self.splits.values()))

    def probe_data(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training features and labels, test features and labels: the inputs of a probe."""
        # Labels first: that they are missing must not be said after an hour of encoding.
        train_labels, test_labels = self.labels("train"), self.labels("test")
        check_pair(train_labels, test_labels, self.class_names)
        return self.features("train"), train_labels, self.features("test"), test_labels

    @property
    def default_recipe(self) -> str | None:
        """Name of the views that suit images which those for natural ones would spoil."""
        return getattr(getattr(self.train, "source", None), "default_recipe", None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """By label, where the images come with names."""
        return getattr(self.test, "class_names", None)

    def network(self, protocol: str) -> torch.nn.Module:
        """The encoder itself, for a protocol that trains (a copy of) it.

        Raises:
            UserError: it is a file for a runtime, which cannot be trained.
        """
        if not isinstance(self.encoder, torch.nn.Module):
            raise UserError(
                f"{protocol} trains the encoder, but '{self.name}' is exported for a runtime; "
                "pass the PyTorch model it was made from"
            )
        return self.encoder


class Embeddings(Subject):
    """A subject without an encoder, whose features are known.

    Args:
        train, test: embeddings (N, 1, 1, D) in place of images, and labels.
        settings: of the subject.
    """

    def __init__(self, train: LabeledImages, test: LabeledImages, **settings: Any):
        super().__init__(_flat, train, test, **settings)
        for name, split in self.splits.items():
            self._features[name] = torch.from_numpy(split.images).flatten(1)


def _flat(x_BD11: Tensor) -> Representation:
    return Representation(x_BD11.flatten(1))
