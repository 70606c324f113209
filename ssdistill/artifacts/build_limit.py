"""A memory limit on building the network that a file describes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssdistill.errors import UserError

SMALLEST, RATIO = 2**28, 4096
"""Elements allowed for any file, and elements allowed per byte; the larger limit applies."""
MOST_TENSORS = 50_000
NEW = ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided", "new_empty", "new_zeros",
       "new_ones", "new_full", "randint", "normal")  # fmt: skip


class TooLarge(UserError):
    """A network, or a weight, that is out of proportion to its file."""


def most_numbers(file_bytes: int) -> int:
    """Largest number of weights that a file of ``file_bytes`` may describe, however coded."""
    return max(SMALLEST, RATIO * file_bytes)


@contextmanager
def build_limit(file_bytes: int, what: str, remedy: str) -> Iterator[None]:
    """Stop building a network that is out of proportion to its file.

    Args:
        file_bytes: size of the file with its weights.
        what, remedy: the thing at fault and what to do, as the message says it.

    Raises:
        TooLarge: more numbers or tensors than :func:`most_numbers`, or than fit in memory.
    """
    refusal = f"{what} describes a network too large for its weights file; {remedy}"
    try:
        with _TensorCounter(most_numbers(file_bytes), refusal):
            yield
    except (MemoryError, OverflowError) as error:
        raise TooLarge(refusal) from error
    except RuntimeError as error:
        if "allocate" in str(error) or "overflow" in str(error):
            raise TooLarge(refusal) from error
        raise


class _TensorCounter(TorchDispatchMode):
    """Count the elements of all tensors before they are allocated."""

    def __init__(self, most: int, refusal: str):
        super().__init__()
        self.most, self.refusal, self.numbers, self.tensors = most, refusal, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in NEW:
            sizes = [arg for arg in args if isinstance(arg, list | tuple)]
            self._add(math.prod(sizes[0]) if sizes else 1)
        result = func(*args, **(kwargs or {}))
        if name not in NEW and isinstance(result, Tensor) and not name.endswith("_"):
            self._add(result.untyped_storage().nbytes() // max(1, result.element_size()))
        return result

    def _add(self, numbers: int) -> None:
        self.numbers, self.tensors = self.numbers + numbers, self.tensors + 1
        if self.numbers > self.most or self.tensors > MOST_TENSORS:
            raise TooLarge(self.refusal)
