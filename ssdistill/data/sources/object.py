"""Images that the running program holds."""

from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from ssdistill.data.named_images import OBJECTS
from ssdistill.data.parts import PartedSource
from ssdistill.data.python_data import ProgramImages
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, nearest


class PythonObject(PartedSource):
    """Arrays, a dataset or a list of paths that a program has named with ``ssdistill.use_data``.

    Stages are known by the content of the images, not by the name. Without test images, some are
    held out by a hash of their number.

    Args:
        name: by which the program named them.
        test_fraction: fraction to hold out without test images; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "object"

    def __init__(
        self,
        *,
        name: str,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ):
        self.name, self.path, self.test_fraction = name, name, test_fraction

    @cached_property
    def _named(self) -> tuple[ProgramImages, ProgramImages | None]:
        if self.name not in OBJECTS:
            raise UserError(
                f"data.name={self.name}: the program has named no such images"
                f"{nearest(self.name, OBJECTS)}; call ssdistill.use_data first"
            )
        return OBJECTS[self.name]

    @property
    def settings(self) -> dict[str, Any]:
        return {}  # their content tells them apart

    def _total(self) -> int:
        return len(self._named[0])

    @property
    def _has_test_images(self) -> bool:
        return self._named[1] is not None

    @property
    def has_labels(self) -> bool:
        train, test = self._named
        return train.has_labels and (test is None or test.has_labels)

    @property
    def default_image_size(self) -> int:
        return self._named[0].size

    @property
    def description(self) -> str:
        train = self._named[0]
        what = type(train.images).__name__
        return f"{self.name} ({what}), {'' if self.has_labels else 'un'}labeled"

    def _split(self, name: str) -> RawSplit:
        train, test = self._named
        images = test if name == "test" and test is not None else train
        return images.split(f"{self.name} ({name})", self._rows(name), any_bands=self.any_bands)
