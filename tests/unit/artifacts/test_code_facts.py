"""What the header of coded weights may say, and how much it may promise."""

import json
import struct

import pytest
import safetensors.torch
import torch

from ssdistill.artifacts.build_limit import most_numbers
from ssdistill.artifacts.coding.codes import MOST, Palette
from ssdistill.artifacts.coding.file import FACTS, pack_state, unpack_state
from ssdistill.errors import UserError

LARGEST = 2**31 - 1
PALETTE = {"kind": "palette", "shape": [50, 50], "k": 4, "rows": False, "half": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [0, LARGEST]},
        {"shape": [1] * 8},
        {"shape": []},
        {"bits": 1},
        {"bits": 8},
        {"k": 1},
        {"k": MOST},
        {"kept": 0, "places": LARGEST, "scales": 0},
    ],
)
def test_facts_within_their_limits_are_taken(changes):
    facts = FACTS.validate_python({"a": PALETTE | changes})["a"]
    assert {name: getattr(facts, name) for name in changes} == changes


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1]},
        {"shape": [LARGEST + 1]},
        {"shape": [1] * 9},
        {"shape": ["3"]},
        {"shape": [3.0]},
        {"bits": 0},
        {"bits": 9},
        {"k": 0},
        {"k": MOST + 1},
        {"kept": -1},
        {"places": -1},
        {"scales": -1},
        {"half": 1},
        {"kind": "pickle"},
        {"more": 1},
    ],
)
def test_facts_beyond_their_limits_are_refused(changes):
    with pytest.raises(ValueError, match="1 validation error"):
        FACTS.validate_python({"a": PALETTE | changes})


@pytest.fixture(scope="module")
def content():
    code = Palette(torch.tensor([0.5, 1.5, 2.5, 3.5]), torch.arange(2500).view(50, 50) % 4)
    return pack_state({"a": code.decode(), "b": torch.ones(3)}, {"a": code})[0]


def with_more_facts(content, more):
    """The same file, whose header has further entries of codes."""
    (length,) = struct.unpack("<Q", content[:8])
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["coded"])
    tensors = safetensors.torch.load(content)
    return safetensors.torch.save(tensors, {"coded": json.dumps(facts | more)})


def test_a_file_that_promises_more_numbers_than_it_can_hold_is_refused(content):
    plain = with_more_facts(content, {})
    assert unpack_state(plain)[0].keys() == {"a", "b"}
    large = PALETTE | {"shape": [LARGEST, LARGEST]}
    with pytest.raises(UserError, match="decode to more values than a file of this size"):
        unpack_state(with_more_facts(content, {"c": large}))
    several = {f"c{i}": PALETTE | {"shape": [most_numbers(len(content)) // 3]} for i in range(4)}
    with pytest.raises(UserError, match="decode to more values than a file of this size"):
        unpack_state(with_more_facts(content, several))


def test_numbers_below_zero_take_nothing_from_what_a_file_promises(content):
    shapes = {"c": [LARGEST, LARGEST], "d": [LARGEST, -LARGEST]}
    facts = {key: PALETTE | {"shape": shape} for key, shape in shapes.items()}
    with pytest.raises(UserError, match=r"not a safetensors file of coded weights: 1 validation"):
        unpack_state(with_more_facts(content, facts))


def test_a_weight_that_stands_for_another_has_to_find_it(content):
    found, codes = unpack_state(with_more_facts(content, {"c": {"same": "a"}, "d": {"same": "b"}}))
    assert found["c"] is found["a"] and found["d"] is found["b"]
    assert codes.keys() == {"a", "c"}
    with pytest.raises(UserError, match="'c' refers to 'nowhere', which is missing"):
        unpack_state(with_more_facts(content, {"c": {"same": "nowhere"}}))
