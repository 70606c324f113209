"""Reconstruction targets: the uncompressed network's outputs, batch by batch."""

import torch
from torch import Tensor

from ssdistill.compress.fitting.observing import ObservedModel
from ssdistill.errors import UserError

BATCH = 32
PLACES = 64
"""Positions sampled per input and feature map; neighboring ones are redundant."""
TARGET_BYTES = 2**29
"""Bytes of outputs held at a time; the rest takes another pass."""
SMALLEST = 8
"""Fewest inputs for a fit and its held-out evaluation."""


Batches = list[tuple[Tensor, bool]]


def split_batches(inputs: Tensor, held_out: float) -> Batches:
    """Batches of inputs, and for each whether it is held out; those are spread evenly.

    Raises:
        UserError: fewer than eight inputs, or values that are not finite.
    """
    if len(inputs) < SMALLEST:
        raise UserError(f"refit requires at least {SMALLEST} inputs, got {len(inputs)}")
    if not inputs.isfinite().all():
        raise UserError("refit: the inputs contain NaN or infinity; correct them")
    count = min(max(round(held_out * len(inputs)), 1), len(inputs) - 1)
    chosen = torch.zeros(len(inputs), dtype=torch.bool)
    chosen[torch.arange(count) * len(inputs) // count] = True
    subsets = [(inputs[~chosen], False), (inputs[chosen], True)]
    return [
        (batch, is_held_out) for subset, is_held_out in subsets for batch in subset.split(BATCH)
    ]


class Targets:
    """The uncompressed network's outputs for every batch, of as many layers as memory allows."""

    def __init__(self, wide: ObservedModel, batches: Batches, counterparts: dict[str, str]):
        self.wide, self.batches, self.counterparts = wide, batches, counterparts
        self.uncollected, self.outputs = list(counterparts), {}

    def of(self, name: str) -> list[list[Tensor]]:
        """By batch and use of the layer: the samples (N, O) to be reached."""
        if name not in self.outputs:
            self._collect()
        return self.outputs.pop(name)

    def _collect(self) -> None:
        chosen, total = [], 0
        while self.uncollected:
            total += self._bytes(self.counterparts[self.uncollected[0]])
            if chosen and total > TARGET_BYTES:
                break
            chosen.append(self.uncollected.pop(0))
        self.outputs = {name: [] for name in chosen}
        for index, (batch, _) in enumerate(self.batches):
            calls = self.wide.observe(
                batch, index, [self.counterparts[name] for name in chosen], False
            )
            for name in chosen:
                ends = [call.end_NO.to(call.y_NO) for call in calls[self.counterparts[name]]]
                self.outputs[name].append(ends)

    def _bytes(self, counterpart: str) -> int:
        inputs = sum(len(batch) for batch, _ in self.batches)
        # Traced on two inputs, at all places.
        per_input = [
            min(len(c.y_NO) // 2, PLACES) * c.y_NO[0].nbytes for c in self.wide.traced[counterpart]
        ]
        return inputs * sum(per_input)
