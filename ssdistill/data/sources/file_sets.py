"""Data sets of image files that torchvision downloads and lists."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ssdistill.data.channel_reader import read_channels
from ssdistill.data.decode import read_image
from ssdistill.data.labels import class_labels
from ssdistill.data.sources.torchvision_sets import Torchvision
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError


class ListedFiles(RawSplit):
    """Image files listed by a data set, read on demand.

    Args:
        load: returns files, labels and class names; called on first use.
    """

    def __init__(
        self,
        title: str,
        identity: str,
        load: Callable[[], tuple[list[Path], list[int], tuple[str, ...] | None]],
    ):
        self.title, self._identity, self._load = title, identity, load

    @cached_property
    def _listed(self) -> tuple[list[Path], list[int], tuple[str, ...] | None]:
        return self._load()

    def __len__(self) -> int:
        return len(self._listed[0])

    def image(self, i: int) -> np.ndarray:
        return read_image(self._listed[0][i])

    def bands(self, i: int) -> np.ndarray:
        return read_channels(self._listed[0][i])

    def name(self, i: int) -> str:
        path = self._listed[0][i]
        return f"{path.parent.name}/{path.name}"

    def identity(self) -> str:
        return self._identity

    def labels(self) -> np.ndarray:
        return class_labels(self._listed[1], f"{self.title}: its labels", len(self))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._listed[2]


class _Files(Torchvision):
    """Base class of sources with image files of many sizes, stored as 64-pixel squares by default.

    Subclasses set ``parts``, torchvision's names of the splits in ``train`` and ``test``.
    """

    default_image_size = 64
    parts: ClassVar[dict[str, tuple[str, ...]]]
    more: ClassVar[dict[str, Any]] = {}

    def _checksum(self) -> str:
        """Return torchvision's checksums of its archives, which identify the files."""
        return str(self.library_class._MD5)

    def _split(self, name: str) -> RawSplit:
        def load() -> tuple[list[Path], list[int], tuple[str, ...] | None]:
            files: list[Path] = []
            labels: list[int] = []
            classes: tuple[str, ...] | None = None
            for part in self.parts[name]:
                data_set = self.load({"split": part, **self.more})
                files += getattr(data_set, "_image_files", None) or data_set._images
                labels += data_set._labels
                part_classes = tuple(data_set.classes) if hasattr(data_set, "classes") else None
                if classes not in (None, part_classes):
                    raise UserError(
                        f"data.kind={self.kind}: the parts {', '.join(self.parts[name])} in root "
                        f"'{self.root}' have different classes; delete the folder to download it "
                        "again"
                    )
                classes = part_classes
            return files, labels, classes

        identity = f"{self._checksum()} {self.parts[name]} {self.more}"
        return ListedFiles(f"{self.kind} {name}", identity, load)


class Flowers102(_Files):
    """Oxford Flowers, 102 classes: 2040 train (its train and val) and 6149 test images.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "flowers102"
    dataset = "Flowers102"
    description = "Oxford Flowers, 102 classes"
    parts: ClassVar = {"train": ("train", "val"), "test": ("test",)}

    def _checksum(self) -> str:
        return " ".join(md5 for _, md5 in self.library_class._file_dict.values())


class Pets(_Files):
    """Oxford-IIIT Pets, 37 breeds: 3680 train (its trainval) and 3669 test images.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "pets"
    dataset = "OxfordIIITPet"
    description = "Oxford-IIIT Pets, 37 breeds"
    parts: ClassVar = {"train": ("trainval",), "test": ("test",)}

    def _checksum(self) -> str:
        return " ".join(md5 for _, md5 in self.library_class._RESOURCES)


class Dtd(_Files):
    """Describable Textures, 47 classes, its first split: 3760 train (train and val), 1880 test.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "dtd"
    dataset = "DTD"
    description = "Describable Textures, 47 classes, split 1"
    parts: ClassVar = {"train": ("train", "val"), "test": ("test",)}
    more: ClassVar = {"partition": 1}


class Food101(_Files):
    """Food-101, 101 dishes: 75,750 train and 25,250 test images.

    Args:
        root: folder of the files, which are downloaded if missing.
    """

    kind = "food101"
    dataset = "Food101"
    description = "Food-101, 101 dishes"
    parts: ClassVar = {"train": ("train",), "test": ("test",)}
