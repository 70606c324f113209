"""What sources of encoded images in rows of tables have in common."""

from abc import abstractmethod
from typing import ClassVar

from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.table_layout import TableLayout
from ssdistill.errors import UserError


class TableSource(Source):
    """Base class of sources whose tables are opened when one of them is first read.

    A subclass has ``_layout``, ``_title``, how messages name the tables, and ``test_key``, the key
    that names test images.
    """

    default_image_size = 64
    test_fraction: float | None
    test_key: ClassVar[str]

    @property
    @abstractmethod
    def _layout(self) -> TableLayout: ...

    @property
    @abstractmethod
    def _title(self) -> str: ...

    @property
    def has_labels(self) -> bool:
        return self.has_test and self._layout.train.labeled

    @property
    def has_test(self) -> bool:
        return len(self._layout.test) > 0

    def warnings(self, labels: bool) -> tuple[str, ...]:
        return tuple(self._layout.warnings)

    @property
    def _counts(self) -> str:
        """Whether there are labels, and how many images."""
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
                f"{self.test_fraction}), or set {self.test_key}"
            )
        return split
