"""Data sets that torchvision downloads and loads as one array."""

from typing import Any, ClassVar, Literal

import numpy as np

from ssdistill.data.array_split import ArraySplit
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError


class Torchvision(Source):
    """A torchvision data set, downloaded to ``root`` if missing."""

    dataset: ClassVar[str]

    def __init__(self, *, root: str = "data"):
        self.root = root

    @property
    def library_class(self) -> Any:
        """The class of the data set in torchvision."""
        import torchvision

        return getattr(torchvision.datasets, self.dataset)

    def load(self, arguments: dict[str, Any]) -> Any:
        """Load the data set, downloading it if missing."""
        try:
            return self.library_class(self.root, download=True, **arguments)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"data.kind={self.kind}: not found in root '{self.root}', and the download failed "
                f"({reason}); check the connection, or set data.root"
            ) from error


class _Arrays(Torchvision):
    """Base class of sources that torchvision loads as one array."""

    def _split(self, name: str) -> RawSplit:
        return self._array_split(name, {"train": name == "train"}, labeled=True)

    def _checksum(self, arguments: dict[str, Any]) -> str:
        """Return torchvision's checksums of its files, which identify them without reading any."""
        return self.library_class.tgz_md5

    def _array_split(self, name: str, arguments: dict[str, Any], labeled: bool) -> RawSplit:
        def images() -> np.ndarray:
            pixels = np.asarray(self.load(arguments).data)
            channels_first = pixels.ndim == 4 and pixels.shape[-1] != 3
            return pixels.transpose(0, 2, 3, 1) if channels_first else pixels

        def labels() -> np.ndarray:
            data_set = self.load(arguments)
            return np.asarray(getattr(data_set, "targets", getattr(data_set, "labels", None)))

        identity = f"{self._checksum(arguments)} {arguments}"
        title = f"{self.kind} {name}"
        return ArraySplit(title, identity, images, labels if labeled else None)


class Cifar10(_Arrays):
    """CIFAR-10: 50,000 train and 10,000 test images of 32x32 pixels, 10 classes.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "cifar10"
    dataset = "CIFAR10"
    default_image_size = 32
    description = "CIFAR-10, 32x32, 10 classes"


class Cifar100(_Arrays):
    """CIFAR-100: 50,000 train and 10,000 test images of 32x32 pixels, 100 classes.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "cifar100"
    dataset = "CIFAR100"
    default_image_size = 32
    description = "CIFAR-100, 32x32, 100 classes"


class Stl10(_Arrays):
    """STL-10, 96x96 pixels, 10 classes: 5000 train, 8000 test and 100,000 unlabeled images.

    Args:
        root: folder of the files, which are downloaded if missing.
        train_split: the training images: ``train``, the 5000 labeled ones, or ``unlabeled``, for
            pretraining and distillation (without labels, evaluation requires another source).
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


class FashionMnist(_Arrays):
    """Fashion-MNIST: 60,000 train and 10,000 test images of 28x28 pixels, gray, 10 classes.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "fashion_mnist"
    dataset = "FashionMNIST"
    default_image_size = 28
    description = "Fashion-MNIST, 28x28 gray, 10 classes"

    def _checksum(self, arguments: dict[str, Any]) -> str:
        return " ".join(md5 for _, md5 in self.library_class.resources)


class Svhn(_Arrays):
    """Street View House Numbers: 73,257 train, 26,032 test images of 32x32 pixels, 10 digits.

    The 531,131 easier images of its split ``extra`` are ignored.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "svhn"
    dataset = "SVHN"
    default_image_size = 32
    description = "SVHN, 32x32, 10 digits"

    def _split(self, name: str) -> RawSplit:
        return self._array_split(name, {"split": name}, labeled=True)

    def _checksum(self, arguments: dict[str, Any]) -> str:
        return self.library_class.split_list[arguments["split"]][2]
