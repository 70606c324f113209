import copy
import json
import struct

import pytest
import safetensors.torch
import torch

from ssdistill.artifacts.coding.codes import Palette, Sparse, Uniform, refresh
from ssdistill.artifacts.coding.file import (
    coded_bytes,
    current,
    pack_state,
    read_code,
    unpack_state,
    write_code,
)
from ssdistill.errors import UserError

SHAPE = (6, 4, 3, 3)


def index_below(size, shape=SHAPE):
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(size))


def mask_of(share):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < share


def all_codes():
    generator = torch.Generator().manual_seed(1)
    mask = mask_of(0.3)
    kept = int(mask.sum())
    return {
        "palette": Palette(torch.randn(16, generator=generator), index_below(16)),
        "palette of 5 a channel": Palette(torch.randn(6, 5, generator=generator), index_below(5)),
        "palette of 256": Palette(torch.randn(256, generator=generator), index_below(256)),
        "palette of one": Palette(torch.tensor([0.7]), index_below(1)),
        "linear layer": Palette(torch.randn(4, generator=generator), index_below(4, (10, 7))),
        "uniform": Uniform(torch.rand(6, generator=generator), None, index_below(8) - 4, 3),
        "uniform with zero": Uniform(
            torch.rand(1, generator=generator), torch.tensor([3.5]), index_below(256), 8
        ),
        "sparse": Sparse(mask, torch.randn(kept, generator=generator)),
        "sparse palette": Sparse(
            mask, torch.randn(3, generator=generator), index_below(3, (kept,))
        ),
        "sparse a channel": Sparse(
            mask, torch.randn(6, 3, generator=generator), index_below(3, (kept,))
        ),
        "nothing kept": Sparse(mask_of(0), torch.zeros(0)),
        "all kept": Sparse(mask_of(2), torch.randn(6 * 36, generator=generator)),
    }


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("name", all_codes())
def test_codes_come_back_from_their_bytes(name, entropy):
    code = all_codes()[name]
    content, facts = write_code(code, entropy)
    found = read_code(content, json.loads(json.dumps(facts)))
    assert type(found) is type(code) and found.shape == code.shape
    assert torch.equal(found.decode(), code.decode())
    assert write_code(found, entropy) == (content, facts)
    assert coded_bytes(code, entropy) == len(content)


def test_what_the_kinds_stand_for():
    index = torch.tensor([[0, 1], [1, 1]])
    assert Palette(torch.tensor([2.0, 5.0]), index).decode().tolist() == [[2, 5], [5, 5]]
    rows = torch.tensor([[2.0, 5.0], [7.0, 8.0]])
    assert Palette(rows, index).decode().tolist() == [[2, 5], [8, 8]]
    scale = torch.tensor([0.5, 2.0])
    integers = torch.tensor([[-2, 1], [0, -1]])
    assert Uniform(scale, None, integers, 2).decode().tolist() == [[-1, 0.5], [0, -2]]
    zero = torch.tensor([1.0, 0.5])
    assert Uniform(scale, zero, index, 1).decode().tolist() == [[-0.5, 0], [1, 1]]
    mask = torch.tensor([[True, False], [False, True]])
    assert Sparse(mask, torch.tensor([3.0, 4.0])).decode().tolist() == [[3, 0], [0, 4]]
    assert Sparse(mask, rows, torch.tensor([1, 0])).decode().tolist() == [[5, 0], [0, 7]]


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_are_those_of_the_arithmetic(bits):
    code = Palette(torch.randn(2**bits), index_below(2**bits))
    assert coded_bytes(code, entropy=False) == 4 * 2**bits + 1 + -(-bits * 216 // 8)
    assert coded_bytes(code) <= coded_bytes(code, entropy=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Palette(torch.zeros(3), torch.tensor([3])),
        lambda: Palette(torch.zeros(257), torch.tensor([3])),
        lambda: Palette(torch.zeros(2, 3), torch.zeros(3, 4, dtype=torch.long)),
        lambda: Uniform(torch.ones(1), None, torch.tensor([4]), 3),
        lambda: Uniform(torch.ones(1), torch.ones(1), torch.tensor([-1]), 3),
        lambda: Uniform(torch.ones(1), None, torch.tensor([0]), 9),
        lambda: Sparse(torch.tensor([True, False]), torch.zeros(2)),
        lambda: Sparse(torch.tensor([True, False]), torch.zeros(2), torch.tensor([2])),
    ],
)
def test_codes_of_nothing_are_refused(make):
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_weight_that_has_changed_is_not_what_its_codes_say():
    for name, code in all_codes().items():
        weight = code.decode()
        assert refresh(code, weight) is code, name
        weight[0, 0] += 1
        changed = refresh(code, weight)
        assert name == "all kept" or changed is None or not code.mask[0, 0].any()
        assert refresh(code, weight[1:]) is None


def test_a_sparse_weight_that_was_trained_stays_sparse():
    code = all_codes()["sparse palette"]
    weight = code.decode() * 1.7
    trained = refresh(code, weight)
    assert trained.index is None and torch.equal(trained.mask, code.mask)
    assert torch.equal(trained.decode(), weight)


def state_of(codes):
    return {key: code.decode() for key, code in codes.items()} | {"bias": torch.randn(5)}


def test_a_file_holds_all_tensors_and_codes():
    codes = all_codes()
    state = state_of(codes)
    content, sizes = pack_state(state, codes)
    assert sum(sizes.values()) == len(content)
    found, found_codes = unpack_state(content)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    # Codes that are no shorter than the numbers are not worth it.
    assert codes.keys() - found_codes.keys() == {"palette of 256"}
    assert pack_state(found, found_codes)[0] == pack_state(state, found_codes)[0]


def test_a_codebook_that_weights_share_is_written_once():
    book = torch.randn(64)
    apart = {key: Palette(book.clone(), index_below(64)) for key in "abc"}
    together = {key: Palette(book, code.index) for key, code in apart.items()}
    sizes = {}
    for name, codes in {"apart": apart, "together": together}.items():
        content, sizes[name] = pack_state(state_of(codes), codes)
        found, found_codes = unpack_state(content)
        assert torch.equal(found["b"], codes["b"].decode())
    assert found_codes["a"].codebook is found_codes["c"].codebook
    assert sizes["apart"]["palette"] - sizes["together"]["palette"] == 3 * 256
    assert sizes["together"]["codebook"] == 256
    again = copy.deepcopy(together)
    assert pack_state(state_of(again), again)[1]["codebook"] == 256


def test_a_weight_that_layers_share_is_written_once():
    weight = torch.randn(40, 40)
    code = Palette(torch.randn(4), index_below(4, (50, 50)))
    shared = code.decode()
    state = {"a": weight, "b": weight, "c": shared, "d": shared}
    content, sizes = pack_state(state, {"c": code, "d": code})
    assert sizes["raw"] == weight.nbytes and sizes["palette"] == coded_bytes(code)
    found, codes = unpack_state(content)
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert codes.keys() == {"c", "d"}


def test_stale_codes_are_left_out():
    codes = {key: all_codes()[key] for key in ("palette", "uniform")}
    state = state_of(codes)
    state["palette"] = state["palette"] + 1
    assert current(state, codes | {"gone": codes["uniform"]}).keys() == {"uniform"}
    found, found_codes = unpack_state(pack_state(state, codes)[0])
    assert torch.equal(found["palette"], state["palette"]) and found_codes.keys() == {"uniform"}


def with_facts(content, change):
    """The same file, with other facts of its codes in the header."""
    (length,) = struct.unpack("<Q", content[:8])
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["coded"])
    change(facts)
    return safetensors.torch.save(safetensors.torch.load(content), {"coded": json.dumps(facts)})


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["palette"].update(shape=[5, 4, 3, 3]),
        lambda facts: facts["palette"].update(k=17),
        lambda facts: facts["palette"].update(kind="pickle"),
        lambda facts: facts["palette"].update(book="codebook:7"),
        lambda facts: facts["palette"].pop("half"),
        lambda facts: facts["uniform"].update(bits=12),
        lambda facts: facts["sparse"].update(kept=3),
        lambda facts: facts.update(absent=facts["palette"]),
        lambda facts: facts.update(absent={"same": "nowhere"}),
        lambda facts: facts.update(absent=3),
    ],
)
def test_facts_that_contradict_the_bytes_are_refused_in_one_line(change):
    codes = {key: all_codes()[key] for key in ("palette", "uniform", "sparse")}
    content, _ = pack_state(state_of(codes), codes)
    with pytest.raises(UserError) as caught:
        unpack_state(with_facts(content, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 9, safetensors.torch.save({})])
def test_other_files_are_refused(content):
    with pytest.raises(UserError, match="not a safetensors file of coded weights"):
        unpack_state(content)
