"""Where a distiller gets the outputs of its teachers from, if not from the teachers."""

from collections.abc import Callable, Mapping
from typing import Protocol

from ssdistill.data.batch import Batch
from ssdistill.distill.cache.layout import Layout
from ssdistill.models.representation import Representation

Views = dict[int | str, Representation]
"""Outputs by number or name of the view."""


class OutputSource(Protocol):
    """Returns the outputs of a teacher for the views of a batch; ``live`` computes them."""

    def __call__(self, teacher: str, live: Callable[[], Views], batch: Batch) -> Views: ...


class Recorded:
    """Recorded outputs: the rows that a batch brings.

    Args:
        layouts: of the rows, by teacher.
    """

    def __init__(self, layouts: Mapping[str, Layout]):
        self.layouts = layouts

    def __call__(self, teacher: str, live: Callable[[], Views], batch: Batch) -> Views:
        return self.layouts[teacher].unpack(batch.outputs[teacher])


class FirstOutputs:
    """Always those of the first batch, to time steps without the teachers."""

    def __init__(self) -> None:
        self._known: dict[str, Views] = {}

    def __call__(self, teacher: str, live: Callable[[], Views], batch: Batch) -> Views:
        if teacher not in self._known:
            self._known[teacher] = live()
        return self._known[teacher]
