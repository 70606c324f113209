"""Recompute activations in the backward pass instead of keeping them (gradient checkpointing).

Chen et al., arXiv:1604.06174: of each block of the encoder only the input is kept; its activations
are computed again, with the same random numbers, when the backward pass comes to it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.models.blocks import blocks_of


def require_blocks(encoder: Encoder) -> dict[str, nn.Module]:
    """Return the blocks of an encoder whose activations can be recomputed.

    Raises:
        UserError: there are none.
    """
    blocks = blocks_of(encoder)
    if not blocks:
        raise UserError(
            f"device.checkpoint_activations: '{encoder.name}' has no blocks to recompute; set it "
            "to false, and microbatch to save memory"
        )
    return blocks


@contextmanager
def recomputed(encoder: Encoder, wanted: bool = True) -> Iterator[None]:
    """Within the block, the encoder keeps the inputs of its blocks only, where it trains.

    Gradients are the same to the bit: random numbers are drawn again, and running statistics of
    batch norms are updated by the first pass alone. Backward passes belong into the block. Names,
    states, hooks and copies of the encoder are not affected.

    Args:
        wanted: False changes nothing.

    Raises:
        UserError: the encoder has no blocks.
    """
    blocks = require_blocks(encoder).values() if wanted else ()
    for block in blocks:
        # A partial, not a closure: a deep copy of the network calls its own blocks.
        vars(block)["forward"] = partial(_forward, block, encoder)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _forward(block: nn.Module, encoder: Encoder, *args: Any, **kwargs: Any) -> Any:
    """What ``block`` does by itself, without keeping its activations."""
    call = partial(type(block).forward, block)
    trained = any(p.requires_grad for p in block.parameters())
    if not torch.is_grad_enabled() or not (block.training and trained):
        return call(*args, **kwargs)

    again = _Again(block, encoder, (*args, *kwargs.values()))

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), again

    return checkpoint(call, *args, use_reentrant=False, context_fn=contexts, **kwargs)


class _Again:
    """A pass of a block that leaves no trace; a graph that is kept may have several.

    Buffers stay as they are, and so does what the encoder has caught for its feature maps.

    Args:
        inputs: of the block, which must be those of its first pass.
    """

    def __init__(self, block: nn.Module, encoder: Encoder, inputs: Iterable[Any]):
        self.block, self.encoder = block, encoder
        self.inputs = [x for x in inputs if isinstance(x, Tensor)]
        self.versions = [x._version for x in self.inputs]

    def __enter__(self) -> None:
        if self.versions != [x._version for x in self.inputs]:
            raise UserError(
                f"device.checkpoint_activations: '{self.encoder.name}' overwrites the inputs of "
                "its blocks; set it to false, and microbatch to save memory"
            )
        self.held = [
            (module, name, buffer)
            for module in self.block.modules()
            for name, buffer in module._buffers.items()
            if module.training and buffer is not None
        ]
        # Copies take what is written; writing to the buffers and back would void other graphs.
        for module, name, buffer in self.held:
            module._buffers[name] = buffer.clone()
        self.caught = self.encoder.caught

    def __exit__(self, *_: object) -> None:
        for module, name, buffer in self.held:
            module._buffers[name] = buffer
        self.encoder.caught = self.caught
