"""Send a piece of work to the other processes: what each of them has is named, not sent.

Images are opened by every process, and files of the runs folder are mapped by each; labels are
sent by nobody who does not want to, since images are sent without them. What is on the device of
process 0 arrives on that of the other.
"""

import io
import mmap
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNSENDABLE = (pickle.PicklingError, AttributeError, NotImplementedError, RuntimeError, TypeError)
"""What pickling raises for what it cannot do: functions inside others, parametrized modules."""
PRESENT, MAPPED, DEVICE, ON_DEVICE = "present", "mapped", "device", "on device"


def pack(content: Any, present: Mapping[str, Any], root: Path) -> bytes:
    """Pickle ``content`` for another process.

    Args:
        present: what the other process has under the same names.
        root: the runs folder, which all processes see.

    Raises:
        One of ``UNSENDABLE``: there is something that cannot be pickled.
    """
    file = io.BytesIO()
    _Packer(file, present, root).dump(content)
    return file.getvalue()


def unpack(packed: bytes, present: Mapping[str, Any], root: Path, device: torch.device) -> Any:
    """Undo :func:`pack` in another process, whose networks are on ``device``."""
    return _Unpacker(io.BytesIO(packed), present, root, device).load()


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, present: Mapping[str, Any], root: Path):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.names = {id(value): name for name, value in present.items()}
        self.root = root.resolve()

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if name := self.names.get(id(obj)):
            return PRESENT, name
        if isinstance(obj, np.memmap):
            return self._mapped(obj)
        if type(obj) is torch.device and obj.type == "cuda":
            return (DEVICE,)
        if type(obj) is Tensor and obj.device.type == "cuda":
            return ON_DEVICE, obj.detach().cpu(), obj.requires_grad
        return None

    def _mapped(self, array: np.memmap) -> tuple[Any, ...] | None:
        """Where in which file of the runs folder an array is; None if it is in none."""
        path = Path(str(array.filename)).resolve()
        if not isinstance(array._mmap, mmap.mmap) or not path.is_relative_to(self.root):  # pyright: ignore[reportAttributeAccessIssue]
            return None
        whole = np.frombuffer(array._mmap, np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
        within = array.ctypes.data - whole.ctypes.data
        start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        place = str(path.relative_to(self.root)), start + within
        return MAPPED, *place, array.dtype, array.shape, array.strides


class _Unpacker(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, present: Mapping[str, Any], root: Path, device: torch.device
    ):
        super().__init__(file)
        self.present, self.root, self.device = present, root, device

    def persistent_load(self, pid: tuple[Any, ...]) -> Any:
        kind, *rest = pid
        if kind == PRESENT:
            return self.present[rest[0]]
        if kind == DEVICE:
            return self.device
        if kind == ON_DEVICE:
            value, requires_grad = rest
            return value.to(self.device).requires_grad_(requires_grad)
        name, offset, dtype, shape, strides = rest
        whole = np.memmap(self.root / name, np.uint8, "r")
        return np.ndarray(shape, dtype, whole, offset, strides)
