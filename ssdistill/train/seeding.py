"""One seed, many independent generators."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, *roles: object) -> int:
    """A 63-bit seed for one role, unrelated to that of any other role or seed."""
    text = "/".join(str(part) for part in (seed, *roles))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_generators(seed: int, *roles: object) -> None:
    """Seed Python's, NumPy's and torch's global generators for one role."""
    derived = derive_seed(seed, *roles)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002  (torch-pruning and others draw from it)
    torch.manual_seed(derived)


def random_state() -> dict[str, torch.Tensor]:
    """State of the generators a training step may draw from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Undo :func:`random_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
