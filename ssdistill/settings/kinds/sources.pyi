# Written by `make stubs`; do not edit.

from typing import Literal, overload

from ssdistill.data.settings import StoreSettings
from ssdistill.data.splits import Source
from ssdistill.settings.registry import Registry

class Cifar10Settings(StoreSettings):
    """CIFAR-10: 50,000 train and 10,000 test images of 32x32 pixels, 10 classes."""

    kind: Literal["cifar10"] = ...
    root: str = ...

class Cifar100Settings(StoreSettings):
    """CIFAR-100: 50,000 train and 10,000 test images of 32x32 pixels, 100 classes."""

    kind: Literal["cifar100"] = ...
    root: str = ...

class DigitsSettings(StoreSettings):
    """scikit-learn's 1797 handwritten digits, 8x8 gray: 1297 to train, 500 to test."""

    kind: Literal["digits"] = ...

class DtdSettings(StoreSettings):
    """Describable Textures, 47 classes, its first split: 3760 train (train and val), 1880 test."""

    kind: Literal["dtd"] = ...
    root: str = ...

class FashionMnistSettings(StoreSettings):
    """Fashion-MNIST: 60,000 train and 10,000 test images of 28x28 pixels, gray, 10 classes."""

    kind: Literal["fashion_mnist"] = ...
    root: str = ...

class Flowers102Settings(StoreSettings):
    """Oxford Flowers, 102 classes: 2040 train (its train and val) and 6149 test images."""

    kind: Literal["flowers102"] = ...
    root: str = ...

class FolderSettings(StoreSettings):
    """A folder of image files, searched recursively."""

    kind: Literal["folder"] = ...
    path: str
    test_fraction: float | None = ...

class Food101Settings(StoreSettings):
    """Food-101, 101 dishes: 75,750 train and 25,250 test images."""

    kind: Literal["food101"] = ...
    root: str = ...

class NpzSettings(StoreSettings):
    """Arrays in one ``.npz`` file, named as in MedMNIST."""

    kind: Literal["npz"] = ...
    path: str

class PetsSettings(StoreSettings):
    """Oxford-IIIT Pets, 37 breeds: 3680 train (its trainval) and 3669 test images."""

    kind: Literal["pets"] = ...
    root: str = ...

class Stl10Settings(StoreSettings):
    """STL-10, 96x96 pixels, 10 classes: 5000 train, 8000 test and 100,000 unlabeled images."""

    kind: Literal["stl10"] = ...
    root: str = ...
    train_split: Literal["train", "unlabeled"] = ...

class SvhnSettings(StoreSettings):
    """Street View House Numbers: 73,257 train, 26,032 test images of 32x32 pixels, 10 digits."""

    kind: Literal["svhn"] = ...
    root: str = ...

AnySettings = (
    Cifar10Settings
    | Cifar100Settings
    | DigitsSettings
    | DtdSettings
    | FashionMnistSettings
    | Flowers102Settings
    | FolderSettings
    | Food101Settings
    | NpzSettings
    | PetsSettings
    | Stl10Settings
    | SvhnSettings
)

class Kinds(Registry[Source]):
    @overload
    def schema(self, kind: Literal["cifar10"]) -> type[Cifar10Settings]: ...
    @overload
    def schema(self, kind: Literal["cifar100"]) -> type[Cifar100Settings]: ...
    @overload
    def schema(self, kind: Literal["digits"]) -> type[DigitsSettings]: ...
    @overload
    def schema(self, kind: Literal["dtd"]) -> type[DtdSettings]: ...
    @overload
    def schema(self, kind: Literal["fashion_mnist"]) -> type[FashionMnistSettings]: ...
    @overload
    def schema(self, kind: Literal["flowers102"]) -> type[Flowers102Settings]: ...
    @overload
    def schema(self, kind: Literal["folder"]) -> type[FolderSettings]: ...
    @overload
    def schema(self, kind: Literal["food101"]) -> type[Food101Settings]: ...
    @overload
    def schema(self, kind: Literal["npz"]) -> type[NpzSettings]: ...
    @overload
    def schema(self, kind: Literal["pets"]) -> type[PetsSettings]: ...
    @overload
    def schema(self, kind: Literal["stl10"]) -> type[Stl10Settings]: ...
    @overload
    def schema(self, kind: Literal["svhn"]) -> type[SvhnSettings]: ...
    @overload
    def schema(self, kind: str) -> type[StoreSettings]: ...
