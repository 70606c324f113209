"""Values computed by the authors' code, and the list of what is compared with them.

A case is a generator of (name, tensor), one for every ``<case>/out/<name>`` there is.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.models.representation import Outputs, Representation

HERE = Path(__file__).parent
SETS = "losses", "frontier"
NUMBERS = {name: array for file in SETS for name, array in np.load(HERE / f"{file}.npz").items()}
MANIFEST = {
    name: entry
    for file in SETS
    for name, entry in json.loads((HERE / f"{file}.json").read_text())["cases"].items()
}

Compared = Iterator[tuple[str, Tensor]]
CASES: dict[str, Callable[[], Compared]] = {}
AUTOCAST: list[str] = []
LEFT_OUT: dict[str, dict[str, str]] = {}


def case(
    name: str, *, autocast: bool = False, left_out: dict[str, str] | None = None
) -> Callable[[Callable[[], Compared]], Callable[[], Compared]]:
    """Register what is compared with a case of the manifest.

    Args:
        autocast: the numbers must come out the same under bf16 autocast.
        left_out: output names that ssdistill does not compute, and why.
    """

    def register(function: Callable[[], Compared]) -> Callable[[], Compared]:
        assert name not in CASES, name
        CASES[name] = function
        LEFT_OUT[name] = left_out or {}
        if autocast:
            AUTOCAST.append(name)
        return function

    return register


def number(name: str) -> Tensor:
    """The stored tensor ``<case>/in/<name>`` or ``<case>/out/<name>``."""
    return torch.from_numpy(NUMBERS[name].copy())


def leaf(name: str) -> Tensor:
    """A stored tensor that collects a gradient."""
    return number(name).requires_grad_()


def weights(prefix: str) -> dict[str, Tensor]:
    """The stored state dict whose keys start with ``prefix``."""
    return {name[len(prefix) :]: number(name) for name in NUMBERS if name.startswith(prefix)}


SHAPES = partial(Shapes, num_samples=1000)
"""``SHAPES(student_dim, teacher_dim)``."""


def outputs(*embeddings: Tensor, momentum: tuple[Tensor, ...] = ()) -> Outputs:
    """One network's embeddings, one per view."""
    views = [Representation(x_BD) for x_BD in embeddings]
    return Outputs(views, momentum=[Representation(x_BD) for x_BD in momentum])


def map_outputs(**maps: Tensor) -> Outputs:
    """One network's feature maps of one view, by name; the embedding is their mean."""
    last = list(maps.values())[-1]
    return Outputs([Representation(last.flatten(2).mean(2), maps=maps)])


def grid(tokens_BNC: Tensor, side: int = 3) -> Tensor:
    """Token rows as a map (B, C, side, side)."""
    return tokens_BNC.mT.unflatten(2, (side, side))


def batch_of(count: int = 8, step: int = 0, index_B: Tensor | None = None) -> Batch:
    images = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count) if index_B is None else index_B, 0, step, 2)


def backward(loss: Tensor) -> None:
    """Outside of autocast, as in training: inside, the products would be rounded."""
    with torch.autocast("cpu", enabled=False):
        loss.backward()
