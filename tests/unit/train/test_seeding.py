import random

import numpy as np
import pytest
import torch

from ssdistill.train.seeding import (
    derive_seed,
    own_generators,
    random_state,
    restore_random_state,
    seed_generators,
)


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_a_derived_seed_is_the_same_in_every_process():
    assert derive_seed(0, "order") == 5231958647509549229
    assert derive_seed(3, "encoder", 1) == 2950986455908674277


def test_seeds_and_roles_give_unrelated_seeds_that_fit_into_63_bits():
    seeds = {derive_seed(seed, role) for seed in range(50) for role in ("order", "views", 1)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_seeding_fixes_python_numpy_and_torch():
    seed_generators(1, "a")
    first = draws()
    seed_generators(1, "a")
    assert draws() == first
    seed_generators(1, "b")
    assert all(x != y for x, y in zip(draws(), first, strict=True))


def test_a_restored_state_draws_the_same_again():
    seed_generators(1)
    torch.rand(3)
    state = random_state()
    expected = torch.rand(5)
    seed_generators(2)
    restore_random_state(state)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize(("saved", "here"), [(True, False), (False, True)])
def test_a_gpu_is_restored_where_there_was_one_and_is_one(saved, here, monkeypatch):
    def no_gpu(state):
        raise AssertionError("restored")

    state = {"cpu": torch.get_rng_state()}
    if saved:
        state["cuda"] = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_rng_state", no_gpu)
    restore_random_state(state)


def test_own_generators_are_seeded_and_leave_no_trace():
    seed_generators(1)
    expected = draws()
    seed_generators(1)
    inside = []
    for _ in range(2):
        with pytest.raises(KeyError), own_generators(7, "probe"):
            inside.append(draws())
            raise KeyError
    assert draws() == expected
    assert inside[0] == inside[1]
    assert all(x != y for x, y in zip(inside[0], expected, strict=True))
