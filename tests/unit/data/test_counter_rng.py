import numpy as np
import pytest
import torch
from scipy import stats

from ssdistill.data.counter_rng import random_bits, uniform

INDEX = torch.arange(4000)


def draw(seed=1, epoch=2, view=3, slots=8, index=INDEX, dtype=torch.float64):
    return uniform(seed, epoch, index, view, slots, dtype=dtype)


def splitmix64(state: int) -> int:
    """The published reference in plain integers, for one step from ``state``."""
    mask = (1 << 64) - 1
    word = (state + 0x9E3779B97F4A7C15) & mask
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def test_tensor_arithmetic_equals_splitmix64_in_plain_integers():
    key = splitmix64((splitmix64((splitmix64(7) + 11) % 2**64) + 5) % 2**64)
    mixed = [splitmix64((key + i - 0x9E3779B97F4A7C15) % 2**64) for i in (0, 3, 123_456_789)]
    want = [[splitmix64((m + k * 0x9E3779B97F4A7C15) % 2**64) for k in range(3)] for m in mixed]
    got = random_bits(7, 11, torch.tensor([0, 3, 123_456_789]), 5, 3)
    assert [[word % 2**64 for word in row] for row in got.tolist()] == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_uniform_on_the_half_open_unit_interval(dtype):
    x = draw(slots=50, dtype=dtype)
    assert x.dtype == dtype and x.min() >= 0 and x.max() < 1
    assert stats.kstest(x.flatten().double().numpy(), "uniform").pvalue > 1e-3


def test_low_bits_are_as_random_as_high_ones():
    bits = random_bits(0, 0, INDEX, 0, 16)
    ones = torch.stack([((bits >> k) & 1).double().mean() for k in range(64)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / bits.numel() ** 0.5


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"epoch": 3},
        {"view": 4},
        {"index": INDEX + 1},
        # Swapped roles must not give the same stream.
        {"seed": 2, "epoch": 1},
        {"epoch": 3, "view": 2},
    ],
)
def test_neighboring_keys_are_uncorrelated(other):
    first, second = draw().flatten(), draw(**other).flatten()
    assert not torch.equal(first, second)
    correlation = np.corrcoef(first.numpy(), second.numpy())[0, 1]
    assert abs(correlation) < 4 / len(first) ** 0.5
    assert stats.kstest(((first - second) % 1).numpy(), "uniform").pvalue > 1e-3


def test_slots_are_uncorrelated():
    x = draw(slots=12, index=torch.arange(20_000))
    correlation = torch.corrcoef(x.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / len(x) ** 0.5


def test_an_image_draws_the_same_in_any_batch_and_with_any_number_of_slots():
    whole = draw(slots=10)
    picked = torch.tensor([7, 3999, 0, 7])
    assert torch.equal(draw(slots=10, index=picked), whole[picked])
    assert torch.equal(draw(slots=4), whole[:, :4])


def test_no_two_numbers_of_a_large_draw_coincide():
    bits = random_bits(0, 0, torch.arange(100_000), 0, 10)
    assert len(torch.unique(bits)) == bits.numel()


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_negative_and_huge_seeds_are_taken():
    assert not torch.equal(draw(seed=-1), draw(seed=2**63))


def test_other_number_types_are_refused():
    with pytest.raises(TypeError, match="float16"):
        draw(dtype=torch.float16)
