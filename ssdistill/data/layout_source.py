"""Base class of sources whose files or rows are sorted into splits on first use."""

from abc import abstractmethod
from typing import Any, ClassVar

from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError


class LayoutSource(Source):
    """A source with a layout: an object with the splits ``train`` and ``test``.

    Subclasses define ``_layout``, which is read once, ``_title``, the name of the source in
    messages, and ``test_remedy``, how to get test images other than by ``data.test_fraction``.
    """

    default_image_size = 64
    test_fraction: float | None
    test_remedy: ClassVar[str]

    @property
    @abstractmethod
    def _layout(self) -> Any: ...

    @property
    @abstractmethod
    def _title(self) -> str: ...

    @property
    def has_labels(self) -> bool:
        return self.has_test and self._layout.train.labeled and self._layout.test.labeled

    @property
    def has_test(self) -> bool:
        return len(self._layout.test) > 0

    def warnings(self, labels: bool) -> tuple[str, ...]:
        return tuple(self._layout.warnings)

    @property
    def _counts(self) -> str:
        """Whether there are labels, and the number of images, for descriptions."""
        layout = self._layout
        return (
            f"{'labeled' if self.has_labels else 'unlabeled'}, {len(layout.train)} train and "
            f"{len(layout.test)} test images"
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if not len(split):
            raise UserError(
                f"{self._title} has no {name} images; raise data.test_fraction (now "
                f"{self.test_fraction}), or {self.test_remedy}"
            )
        return split
