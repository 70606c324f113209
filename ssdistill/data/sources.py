"""Where pictures come from. A class with a ``kind`` that is seen here can be named in a config."""

import hashlib
from typing import Any, ClassVar, Literal

import numpy as np

from ssdistill.data.folder import Folder
from ssdistill.data.npz import Npz
from ssdistill.data.splits import SPLITS, ArraySplit, RawSplit, Source
from ssdistill.errors import UserError

__all__ = ["Cifar10", "Cifar100", "Digits", "Folder", "Npz", "RawSplit", "Source", "Stl10"]


class Digits(Source):
    """scikit-learn's 1797 handwritten digits, 8x8 grey: 1297 to train, 500 to test."""

    kind = "digits"
    default_image_size = 16
    default_recipe = "digits"
    description = "scikit-learn digits, 8x8 grey, 10 classes"

    def _split(self, name: str) -> RawSplit:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, targets = load_digits().images, load_digits().target
        parts = train_test_split(
            np.arange(len(images)), test_size=500, stratify=targets, random_state=0
        )
        rows = np.sort(parts[SPLITS.index(name)])
        # Grey runs from 0 to 16.
        pixels = np.rint(images[rows] * (255 / 16)).astype(np.uint8)
        identity = hashlib.sha256(pixels.tobytes()).hexdigest()
        return ArraySplit(
            f"digits {name}", identity, lambda: pixels, lambda: targets[rows], lambda: range(10)
        )


class _Torchvision(Source):
    """A torchvision data set, downloaded to ``root`` when it is not there."""

    dataset: ClassVar[str]

    def __init__(self, *, root: str = "data"):
        self.root = root

    def _split(self, name: str) -> RawSplit:
        return self._array_split(name, {"train": name == "train"}, labeled=True)

    def _array_split(self, name: str, arguments: dict[str, Any], labeled: bool) -> RawSplit:
        import torchvision

        cls = getattr(torchvision.datasets, self.dataset)

        def load() -> Any:
            try:
                return cls(self.root, download=True, **arguments)
            except (OSError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"data.kind={self.kind}: not in root '{self.root}', and the download failed "
                    f"({reason})"
                ) from error

        def images() -> np.ndarray:
            pixels = load().data
            return pixels if pixels.shape[-1] == 3 else pixels.transpose(0, 2, 3, 1)

        def labels() -> np.ndarray:
            found = load()
            return np.asarray(getattr(found, "targets", getattr(found, "labels", None)))

        # torchvision checks its files against this sum, so nothing need be read to know them.
        identity = f"{cls.tgz_md5} {arguments}"
        title = f"{self.kind} {name}"
        return ArraySplit(title, identity, images, labels if labeled else None)


class Cifar10(_Torchvision):
    """CIFAR-10: 50 000 train and 10 000 test pictures of 32x32 pixels, 10 classes.

    Args:
        root: folder of the files; they are downloaded there when missing.
    """

    kind = "cifar10"
    dataset = "CIFAR10"
    default_image_size = 32
    description = "CIFAR-10, 32x32, 10 classes"


class Cifar100(_Torchvision):
    """CIFAR-100: 50 000 train and 10 000 test pictures of 32x32 pixels, 100 classes.

    Args:
        root: folder of the files; they are downloaded there when missing.
    """

    kind = "cifar100"
    dataset = "CIFAR100"
    default_image_size = 32
    description = "CIFAR-100, 32x32, 100 classes"


class Stl10(_Torchvision):
    """STL-10, 96x96 pixels, 10 classes: 5000 train, 8000 test and 100 000 unlabeled pictures.

    Args:
        root: folder of the files; they are downloaded there when missing.
        train_split: what ``train`` means: ``unlabeled`` for pretraining and distillation (it
            then has no labels, so probes need a second source), ``train`` for the labeled 5000.
    """

    kind = "stl10"
    dataset = "STL10"
    default_image_size = 96
    description = "STL-10, 96x96, 10 classes"

    def __init__(self, *, root: str = "data", train_split: Literal["train", "unlabeled"] = "train"):
        super().__init__(root=root)
        self.train_split = train_split
        self.has_labels = train_split == "train"

    def _split(self, name: str) -> RawSplit:
        part = self.train_split if name == "train" else name
        return self._array_split(name, {"split": part}, labeled=part != "unlabeled")
