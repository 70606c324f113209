"""One file = one compression step. A new file here is found by itself (see `registry`)."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.progress import track
from torch import Tensor

from ssdistill.models.backbones import Encoder
from ssdistill.settings import Settings


def bar(items: Sequence[Any], title: str) -> Iterable[Any]:
    """``items`` with a progress bar, silent when nobody watches."""
    return track(items, description=title, disable=not sys.stderr.isatty(), transient=True)


@dataclass
class Context:
    """What a step may use besides the encoder it is given; no label among it.

    Attributes:
        images: ``images(n, seed)`` gives up to ``n`` evaluation views of distinct unlabeled
            training images, chosen by ``seed``: float (n, 3, H, W) in [0, 1].
        folder: an existing folder the step may write its files to.
        teachers: the frozen teachers by name; empty where the chain has none.
        original: the encoder as it entered the first step of the chain.
        train: ``train(student, teachers, settings)`` runs the training loop with the distillation
            losses named in ``settings`` and returns the trained student; None where a chain
            has nothing to train with.
        progress: ``progress(items, title)`` wraps an iteration that may take seconds.
        record: what the step has to report, as plain numbers and strings; the caller hands
            every step an empty one.
    """

    images: Callable[[int, int], Tensor]
    folder: Path
    teachers: Mapping[str, Encoder] = field(default_factory=dict)
    original: Encoder | None = None
    train: Callable[[Encoder, Mapping[str, Encoder], Settings], Encoder] | None = None
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = bar
    record: dict[str, Any] = field(default_factory=dict)


class Step:
    """A compression step: ``apply(encoder, context) -> encoder``.

    The given encoder is left as it was; the returned one has the same embedding width and takes
    the same images. Keyword-only constructor arguments are the config.

    A subclass sets:
        kind: name in a config.
        paper: ``"Author et al., Venue Year, arXiv:XXXX.XXXXX"``, or what it follows.
        makes: what its result is called in tables.
        trains: True when it needs ``context.train`` and a teacher.
    """

    kind: ClassVar[str]
    paper: ClassVar[str]
    makes: ClassVar[str]
    trains: ClassVar[bool] = False

    def apply(self, encoder: Encoder, context: Context) -> Encoder:
        raise NotImplementedError(f"{type(self).__name__}.apply")
