"""Flatten a checkpoint to named tensors, without training state and wrapper prefixes."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.teachers.formats.safe_unpickler import Array, Inert, Unusable
from ssdistill.teachers.formats.tensors import plain, unusable

DEEPEST, MOST_ENTRIES = 64, 1_000_000
"""Limits: nesting depth of dicts, and entries of all dicts together."""

TRAINING = {
    "amp", "args", "callbacks", "cfg", "config", "hparams", "hyper_parameters", "loops",
    "lr_scheduler", "lr_schedulers", "opt", "scaler", "scheduler", "schedulers",
}  # fmt: skip
"""Dicts that hold the state of a training, not of a network, beside all that begin with optim."""
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"}
"""Name parts inserted by parallel and compiled modules, at any position."""
CONTAINERS = {"state_dict", "model", "model_state_dict", "model_state"}
"""Leading name parts that only mark a network."""


def flat_state(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return every tensor of nested dicts by its dotted name.

    Raises:
        UserError: no tensors, two of one name, one that is no plain array of numbers, or dicts
            that are nested without end.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in named_tensors(loaded, path).items():
        clean = ".".join(without_containers(without_wrappers(name.split("."))))
        if clean in state:
            raise UserError(
                f"{path} holds two tensors named '{clean}' once prefixes are removed, one as "
                f"'{name}': save one of them"
            )
        state[clean] = tensor
    return state


def named_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return every tensor of nested dicts by its dotted name, as it is in the file.

    Raises:
        UserError: no tensors, one that is no plain array of numbers, or dicts that are nested
            without end.
    """
    tensors = _collect(loaded, path)
    if not tensors and isinstance(loaded, Inert):
        raise UserError(f"{path} holds a pickled object, not weights: save its state_dict instead")
    if not tensors:
        raise UserError(f"{path} holds no named tensors: save a state_dict")
    return tensors


def _collect(loaded: Any, path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    for _ in range(MOST_ENTRIES):
        if not waiting:
            return tensors
        parts, value = waiting.pop()
        if isinstance(value, Array):
            value = value.tensor()
        if isinstance(value, Tensor | Unusable):
            name = ".".join(parts)
            why = value.why if isinstance(value, Unusable) else unusable(value)
            if why is not None or isinstance(value, Unusable):
                raise UserError(f"{path}: tensor '{name}' {why}")
            tensors[name] = plain(value)
        elif isinstance(value, dict):
            if len(parts) == DEEPEST:
                start = ".".join(parts[:3])
                raise UserError(
                    f"{path}: '{start}…' is nested more than {DEEPEST} dicts deep: not a "
                    "checkpoint; save the state_dict"
                )
            named = [(name, item) for name, item in value.items() if isinstance(name, str)]
            weight_items = [
                ((*parts, name), item) for name, item in named if not _is_training(name, item)
            ]
            waiting += reversed(weight_items)
    raise UserError(
        f"{path} holds more than {MOST_ENTRIES} entries: not a checkpoint; save the state_dict"
    )


def _is_training(name: str, item: Any) -> bool:
    return not isinstance(item, Tensor) and (name in TRAINING or name.startswith("optim"))


def without_wrappers(parts: list[str]) -> list[str]:
    """Return the parts of a name without those of parallel and compiled modules."""
    return [part for part in parts if part not in WRAPPERS]


def without_containers(parts: list[str]) -> list[str]:
    """Return the parts of a name without those at its start that only mark a network."""
    while len(parts) > 1 and parts[0] in CONTAINERS:
        parts = parts[1:]
    return parts
