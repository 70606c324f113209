"""What must not be computed in float16, whose largest number is 65,504."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch

from ssdistill.models.encode import View
from ssdistill.models.representation import Representation


def in_float16(device: str) -> bool:
    """Whether autocast computes in float16 on this type of device at present."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


@contextmanager
def never_in_float16(device: str) -> Iterator[None]:
    """Within the block, autocast to float16 is off; to bfloat16, it stays as it is.

    Losses sum squares over feature maps, which overflow in float16, and take logarithms of small
    probabilities, which vanish in it; bfloat16 has the range of float32.
    """
    with torch.autocast(device, enabled=False) if in_float16(device) else nullcontext():
        yield


def beyond_float16(outputs: Mapping[View, Representation]) -> dict[View, Representation]:
    """Return outputs for losses, by view: in float32 if the networks compute in float16."""
    first = next(iter(outputs.values()), None)
    if first is None or not in_float16(first.embedding_BD.device.type):
        return dict(outputs)
    return {name: output.float() for name, output in outputs.items()}
