"""Record what a frozen teacher makes of the views of all images."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.extra import EXTRA
from ssdistill.data.loader import Loader
from ssdistill.data.progress import with_bar
from ssdistill.data.view_plan import ViewPlan
from ssdistill.distill.cache.parts import Held, Parts
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.models.encode import encode_views
from ssdistill.models.representation import Representation

Views = dict[int | str, Representation]
"""Outputs by number or name of the view."""


@dataclass
class LiveOutputs:
    """A teacher, and the views that it encodes.

    Args:
        name: of the teacher, for messages.
        teacher: in eval mode, on the device of ``loader``.
        views: numbers and names of the views that it encodes.
        loader: of the images.
        plan: of the views, with ``passes``.
        context: what the teacher computes in, such as autocast.
        convert: what a training does to its views before any network sees them.
        memory_format: of the views.
        batch_size: images encoded at a time.
    """

    name: str
    teacher: Encoder
    views: tuple[int | str, ...]
    loader: Loader
    plan: ViewPlan
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    convert: Callable[[Tensor], Tensor] = lambda view: view
    memory_format: torch.memory_format = torch.contiguous_format
    batch_size: int = 256

    def of(self, number: int, rows_N: np.ndarray) -> Iterator[Views]:
        """Yield the outputs for the views of some images in pass ``number``, batch by batch.

        Raises:
            UserError: the teacher learns, or is in training mode.
        """
        check_frozen(self.name, self.teacher)
        starts = range(0, len(rows_N), self.batch_size)
        pieces = [rows_N[start : start + self.batch_size] for start in starts]
        with ThreadPoolExecutor(1, thread_name_prefix="views") as thread:
            # One batch of views is made while the teacher encodes another.
            made = [thread.submit(self._views_of, number, pieces[0])]
            for following in [*pieces[1:], None]:
                views = made.pop().result()
                if following is not None:
                    made.append(thread.submit(self._views_of, number, following))
                with torch.no_grad(), self.context():
                    outputs = encode_views(self.teacher, views)
                yield outputs

    def _views_of(self, number: int, rows_B: np.ndarray) -> dict[int | str, Tensor]:
        batch = self.loader.batch_of(rows_B, number, self.plan)
        views = self.plan.views(batch)
        names = [view.number for view in self.plan.plain]
        names += [name for name in EXTRA if name in self.plan.extra]
        by_name = dict(zip(names, views, strict=True))
        return {
            n: self.convert(by_name[n].contiguous(memory_format=self.memory_format))
            for n in self.views
        }


def check_frozen(name: str, teacher: Encoder) -> None:
    """Check that a teacher's outputs depend on the image alone, and do not change.

    Raises:
        UserError: a parameter that learns, or a module in training mode.
    """
    learning = next((n for n, p in teacher.named_parameters() if p.requires_grad), None)
    if learning is not None:
        raise UserError(
            f"cache: teacher '{name}' learns ('{learning}' requires a gradient): its outputs "
            "change; call requires_grad_(False), or set cache=null"
        )
    training = next((n for n, module in teacher.named_modules() if module.training), None)
    if training is not None:
        raise UserError(
            f"cache: teacher '{name}' is in training mode ('{training or 'encoder'}'): its outputs "
            "depend on the batch; call eval()"
        )


def fill_parts(
    parts: Parts,
    missing: Iterable[int],
    make: Callable[[int, np.ndarray], np.ndarray],
    title: str,
    say: Callable[[str], object],
) -> None:
    """Write the missing parts, beside other processes that may do the same.

    Args:
        make: returns the rows (n, W) of some images in a pass.
        title: of the progress bar.
        say: prints a line.
    """
    missing = list(missing)
    for _ in with_bar(_filling(parts, missing, make, say), _count(parts, missing), title):
        pass


def _count(parts: Parts, missing: list[int]) -> int:
    return sum(end - start for _, start, end in map(parts.place, missing))


def _filling(
    parts: Parts,
    missing: list[int],
    make: Callable[[int, np.ndarray], np.ndarray],
    say: Callable[[str], object],
) -> Iterator[tuple[range]]:
    """Yield the images of every part that is complete; those of other processes come last."""
    told = False
    while missing:
        held = []
        for part in missing:
            try:
                with parts.locked(part):
                    _fill_one(parts, part, make)
            except Held:
                held.append(part)
                continue
            yield (_images(parts, part),)
        if held == missing:
            # Others are making all that is left.
            if not told:
                say(f"  {parts.folder}: waiting for another process to record the rest")
                told = True
            part = held.pop(0)
            with parts.locked(part, on_wait=lambda: None):
                _fill_one(parts, part, make)
            yield (_images(parts, part),)
        missing = held


def _fill_one(parts: Parts, part: int, make: Callable[[int, np.ndarray], np.ndarray]) -> None:
    if parts.status(part) != "complete":  # another process may have been here
        number, start, end = parts.place(part)
        parts.write(part, make(number, np.arange(start, end)))


def _images(parts: Parts, part: int) -> range:
    _, start, end = parts.place(part)
    return range(start, end)
