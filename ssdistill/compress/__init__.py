"""One file per compression step; a new file is registered automatically (see `registry`).

Folders and files without a `kind` hold what steps are made of; models are opened and saved in
`artifacts`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.markup import escape
from rich.progress import track
from torch import Tensor

from ssdistill.compress.gate import Gate
from ssdistill.models.model import Model
from ssdistill.settings import Settings
from ssdistill.train.settings import TrainSettings


def bar(items: Sequence[Any], title: str) -> Iterable[Any]:
    """Iterate over ``items`` with a progress bar, hidden without a terminal."""
    return track(items, description=escape(title), disable=not sys.stderr.isatty(), transient=True)


class StepSettings(Settings):
    """Settings shared by all steps.

    Args:
        gate: what the result must be for the step to count; null takes it as it comes.
    """

    gate: Gate | None = None
    if TYPE_CHECKING:
        kind: str  # which the registry gives every schema


@dataclass
class Context:
    """Inputs of a step besides the model; none of them a label.

    Attributes:
        images: ``images(n, seed)`` gives up to ``n`` distinct unlabeled training inputs, chosen
            by ``seed``: for encoders evaluation views, float (n, C, H, W) in [0, 1].
        folder: an existing folder for the files of the result, such as ``model.onnx``.
        scratch: an existing folder that outlives an interruption: a long step keeps what it has
            found so far here, and reads it when it is run again.
        original: the model as it entered the first step of the chain.
        before: the model as it was before channels, blocks or ranks were last taken from it, by
            one step or by several in a row.
        teachers: the frozen teachers by name; empty where the chain has none.
        train: ``train(student, targets, settings)`` runs a training loop (``settings`` is a
            ``TrainSettings``) in which ``student`` learns from the ``targets``, without labels,
            and returns it; None where there is nothing to train with.
        losses: ``losses(student, targets, count, seed)`` gives the total distillation loss of
            ``count`` batches of augmented views one after the other, each a scalar with a graph
            to ``student``; None where there is nothing to train with.
        progress: ``progress(items, title)`` wraps an iteration that may take seconds.
        record: what the step has to report, as plain numbers and strings; the caller hands
            every step an empty one.
    """

    images: Callable[[int, int], Tensor]
    folder: Path
    scratch: Path | None = None
    original: Model | None = None
    before: Model | None = None
    teachers: Mapping[str, Model] = field(default_factory=dict)
    train: Callable[[Model, Mapping[str, Model], TrainSettings], Model] | None = None
    losses: Callable[[Model, Mapping[str, Model], int, int], Iterator[Tensor]] | None = None
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = bar
    record: dict[str, Any] = field(default_factory=dict)


class Step:
    """A compression step: ``apply(model, context) -> model``.

    The given model is left as it was; the returned one has the same embedding width and takes
    the same inputs. Keyword-only constructor arguments are the config.

    A subclass sets:
        kind: name in a config.
        paper: ``"Author et al., Venue Year, arXiv:XXXX.XXXXX"``, or what it follows.
        makes: what its result is called in tables.
        reshapes: True when it takes channels, blocks or ranks away: the model it was given is
            the ``context.before`` of the steps that follow, or, where such a step came right
            before it, what that one was given.
        leaf: True when its result is a file for a runtime, from which nothing can be made; a
            leaf that follows is made from the same model.
    """

    kind: ClassVar[str]
    paper: ClassVar[str]
    makes: ClassVar[str]
    reshapes: ClassVar[bool] = False
    leaf: ClassVar[bool] = False

    @classmethod
    def learns(cls, settings: StepSettings) -> bool:
        """Whether it needs ``context.train`` or ``context.losses``."""
        return False

    @classmethod
    def expand(cls, settings: StepSettings) -> Sequence[StepSettings]:
        """Expand into the settings of several steps, one stage each.

        A schedule of many rounds can then be interrupted between any two of them.
        """
        return [settings]

    @classmethod
    def row(cls, settings: StepSettings) -> str:
        """Name of the result in tables; it begins with ``makes``."""
        return cls.makes

    def apply(self, model: Model, context: Context) -> Model:
        raise NotImplementedError(f"{type(self).__name__}.apply")
