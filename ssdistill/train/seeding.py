"""Independent random generators derived from one seed."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *roles: object) -> int:
    """Derive a 63-bit seed for one role, unrelated to that of any other role or seed."""
    text = "/".join(str(part) for part in (seed, *roles))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_generators(seed: int, *roles: object) -> None:
    """Seed Python's, NumPy's and torch's global generators for one role."""
    derived = derive_seed(seed, *roles)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002  (torch-pruning and others draw from it)
    torch.manual_seed(derived)


@contextmanager
def own_generators(seed: int, *roles: object) -> Iterator[None]:
    """Seed the global generators for one role inside the block; restore them afterwards."""
    plain, numeric = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        seed_generators(seed, *roles)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numeric)  # noqa: NPY002


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of the generators that a training step may use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Undo :func:`random_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
