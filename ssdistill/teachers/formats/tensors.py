"""Checks that a checkpoint's tensors are usable weights."""

import torch
from torch import Tensor

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
REPEATED = 2**20
"""Largest number of elements of a tensor that repeats elements of its storage."""


def unusable(tensor: Tensor) -> str | None:
    """Why a tensor is no plain array of numbers, and what to do, as a predicate; None if it is."""
    if tensor.is_meta:
        return "is on the meta device and has no data: save the weights after loading them"
    if tensor.is_nested:
        return "is a nested tensor: save its parts separately"
    if tensor.is_quantized:
        return "is quantized: save tensor.dequantize()"
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        return f"has layout {layout}: save tensor.to_dense()"
    if tensor.is_complex():
        return f"holds complex numbers ({_name(tensor)}), which no supported network uses"
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        return f"holds {_name(tensor)} values without their scale: save them as float32"
    stored = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
    if tensor.numel() > max(REPEATED, stored):
        return (
            f"has {tensor.numel()} elements, but the file stores only {stored}: save a contiguous "
            "copy"
        )
    return None


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def plain(tensor: Tensor) -> Tensor:
    """Its numbers as an ordinary tensor, whatever class it was saved as."""
    return tensor.detach().as_subclass(Tensor)


def not_finite(state: dict[str, Tensor]) -> str:
    """Which tensors hold NaN or infinity, as a predicate of their file; empty without any."""
    names = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} of {len(state)} tensors hold NaN or infinity ({shown})"
