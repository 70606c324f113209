"""Checkpoints that hold no plain weights, or claim more than they hold."""

import io
import json
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from ssdistill.artifacts.coding.codes import Palette, Sparse, Uniform
from ssdistill.artifacts.coding.file import pack_state, unpack_state
from ssdistill.errors import UserError
from ssdistill.models.spec import EncoderSettings
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.checkpoint import Checkpoint
from ssdistill.teachers.formats import states
from ssdistill.teachers.formats.reading import read
from ssdistill.teachers.formats.safe_unpickler import refuse_bombs
from ssdistill.teachers.formats.states import flat_state
from ssdistill.teachers.timm_model import TimmModel

ARGS = {"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
KEY = "conv1.0.weight"
IMAGE_SPEC = ImageSpec(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


class Sub(torch.Tensor):
    """A class that pickles name."""


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=0, **ARGS).state_dict()


def saved(content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def load(path):
    settings = EncoderSettings(name="resnet10t", args=ARGS)
    return Checkpoint(path=str(path), encoder=settings).load(IMAGE_SPEC)


def refused(opened, *args):
    with pytest.raises(UserError) as caught:
        opened(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ODD = {
    "meta": (lambda w: w.to("meta"), "is on the meta device"),
    "sparse": (lambda w: w.to_sparse(), "save tensor.to_dense()"),
    "csr": (lambda w: w.flatten(1).to_sparse_csr(), "save tensor.to_dense()"),
    "quantized": (
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "save tensor.dequantize()"
    ),
    "by channel": (
        lambda w: torch.quantize_per_channel(w, torch.ones(8), torch.zeros(8), 0, torch.qint8),
        "save tensor.dequantize()",
    ),
    "nested": (lambda w: torch.nested.nested_tensor([w[0], w[1]]), "is a nested tensor"),
    "masked": (lambda w: torch.masked.masked_tensor(w, w > 0), "save a plain tensor"),
    "complex": (lambda w: w.to(torch.complex64), "holds complex numbers"),
    "repeated": (lambda w: torch.zeros(1).expand(10**6, 10**6), "but the file stores only 1"),
    "integers": (lambda w: w.long(), "of type int64"),
    "booleans": (lambda w: w > 0, "of type bool"),
    "bytes": (lambda w: w.to(torch.uint8), "of type uint8"),
    "none": (lambda w: w[:0], "of shape (0, 3, 3, 3)"),
    "other shape": (lambda w: w[:, :, :2], "of shape (8, 3, 2, 3)"),
    "scalar": (lambda w: w.sum(), "of shape ()"),
    "lazy": (lambda w: torch.nn.UninitializedParameter(), "lacks 1 of the"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_tensors_that_are_no_weights_are_refused_by_name(name, legacy, state, tmp_path):
    change, words = ODD[name]
    path = saved({**state, KEY: change(state[KEY])}, tmp_path / "w.pth", legacy)
    text = refused(load, path)
    assert words in text and KEY in text and str(path) in text


def test_numbers_of_eight_bits_without_a_scale_are_refused(state, tmp_path):
    path = saved({**state, KEY: state[KEY].to(torch.float8_e4m3fn)}, tmp_path / "w.pth")
    assert f"tensor '{KEY}' holds float8_e4m3fn" in refused(load, path)


@pytest.mark.parametrize("change", [
    lambda t: t.double(), lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t.as_subclass(Sub),
    torch.nn.Parameter, lambda t: torch.stack([t, t], -1)[..., 0],
    lambda t: t[:1].expand(t.shape) if t.ndim else t,
])  # fmt: skip
def test_weights_of_every_width_class_and_stride_are_taken(change, state, tmp_path):
    changed = {k: change(v) if v.is_floating_point() else v for k, v in state.items()}
    path = saved(changed, tmp_path / "w.pth")
    assert type(flat_state(read(path), path)[KEY]) is torch.Tensor
    encoder, _ = load(path)
    found = encoder.net.state_dict()[KEY]
    assert type(found) is torch.Tensor and found.dtype == torch.float32
    assert torch.equal(found, changed[KEY].detach().as_subclass(torch.Tensor).float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_said(value, state, tmp_path):
    path = saved({**state, KEY: state[KEY] * value}, tmp_path / "w.pth")
    assert any(f"1 of 54 tensors hold NaN or infinity ({KEY})" in n for n in load(path)[1])
    assert not any("NaN" in notice for notice in load(saved(state, path))[1])
    teacher = TimmModel(name="resnet10t", args=ARGS, weights=str(path))
    assert not any("NaN" in notice for notice in teacher.load(IMAGE_SPEC)[1])
    saved({**state, KEY: state[KEY] * value}, path)
    assert any("NaN or infinity" in notice for notice in teacher.load(IMAGE_SPEC)[1])


@pytest.mark.parametrize("name", ["meta", "sparse", "quantized", "complex"])
def test_files_for_timm_are_read_as_carefully(name, state, tmp_path):
    path = saved({**state, KEY: ODD[name][0](state[KEY])}, tmp_path / "w.pth")
    text = refused(TimmModel(name="resnet10t", args=ARGS, weights=str(path)).load, IMAGE_SPEC)
    assert text.startswith(f"teacher.weights: {path}") and KEY in text


def nested(depth, end):
    for _ in range(depth):
        end = {"a": end}
    return end


@pytest.mark.parametrize("legacy", [False, True])
def test_dicts_without_end_are_refused(legacy, tmp_path, monkeypatch):
    assert states.MOST_ENTRIES >= 1_000_000
    monkeypatch.setattr(states, "MOST_ENTRIES", 20_000)  # looking through a million takes seconds
    endless: dict = {}
    endless["a"] = endless
    doubling = {"w": torch.ones(1)}
    for _ in range(60):
        doubling = {"a": doubling, "b": doubling}
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(30_000)
    try:
        contents = [nested(2000, {"w": torch.ones(1)}), endless, doubling]
        paths = [saved(content, tmp_path / f"{number}.pth", legacy) for number, content
                 in enumerate(contents)]  # fmt: skip
    finally:
        sys.setrecursionlimit(before)
    for path in paths:
        text = refused(lambda p: flat_state(read(p), p), path)
        assert "nested more than 64 dicts deep" in text or "more than 20000 entries" in text
        refused(load, path)
    fine = saved(nested(50, {"w": torch.ones(1)}), tmp_path / "fine.pth", legacy)
    assert len(flat_state(read(fine), fine)) == 1


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """The zip with ``change(name, content)`` for every member."""
    with zipfile.ZipFile(path) as old:
        members = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in members.items():
            new.writestr(name, content)


def test_a_zip_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(state, tmp_path):
    path = saved(state, tmp_path / "w.pth")
    repacked(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert len(load(path)[1])
    repacked(path, lambda n, c: bytes(2**25) if n.endswith("/data/0") else c, zipfile.ZIP_DEFLATED)
    for opened in (load, TimmModel(name="resnet10t", args=ARGS, weights=str(path)).load):
        given = path if opened is load else IMAGE_SPEC
        text = refused(opened, given)
        assert "declares 33554432 bytes" in text and "data/0" in text


def test_a_zip_that_claims_sizes_is_refused(state, tmp_path):
    path = saved(state, tmp_path / "w.pth")
    content = bytearray(path.read_bytes())
    first = content.find(b"PK\x01\x02")
    content[first + 24 : first + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    assert "declares 4294967294 bytes" in refused(load, path)


def test_a_storage_that_claims_more_numbers_than_the_file_has_is_refused(tmp_path):
    path = saved({"w": torch.arange(6.0)}, tmp_path / "w.pth")
    large = (b"K\x06t", b"J\0\0\x10\0t"), (b"K\x06\x85", b"J\0\0\x10\0\x85")

    def change(name, content):
        if name.endswith("data.pkl"):
            for old, new in large:
                assert old in content
                content = content.replace(old, new)
        return content

    repacked(path, change)
    refused(read, path)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x02}p2147483647\n.",
     b"\x80\x04\x8e" + b"\xff" * 7 + b"\0.",
     b"\x80\x04\x8e" + struct.pack("<Q", 10**12) + b".", b"\x80\x04\x8b\xff\xff\xff\x7f.",
     b"\x80\x04" + b"(" * 10**6 + b".", b"\x80\x02" + b"]" * 10**5, b".", b"\x80\xff."],
)  # fmt: skip
def test_pickles_that_claim_sizes_are_refused(content, tmp_path):
    (tmp_path / "w.pkl").write_bytes(content)
    assert "w.pkl" in refused(lambda p: flat_state(read(p), p), tmp_path / "w.pkl")


def test_the_check_for_bombs_leaves_the_file_where_it_was():
    file = io.BytesIO(b"\x80\x02}.rest")
    refuse_bombs(file)
    assert file.tell() == 0


def tar(path):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("../../escaped")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))


@pytest.mark.parametrize("name", ["w.pth", "w.ckpt", "w.pkl", "w.safetensors"])
@pytest.mark.parametrize("how", ["empty", "half", "end", "start", "tar", "text", "folder", "loop",
                                 "gone"])  # fmt: skip
def test_files_that_are_none_are_said_to_be(how, name, state, tmp_path):
    path = tmp_path / name
    if name.endswith("safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        saved(state, path)
    content = path.read_bytes()
    parts = {"empty": b"", "half": content[: len(content) // 2], "end": content[:-10],
             "start": content[40:], "text": b"hello world " * 40}  # fmt: skip
    path.unlink()
    if how in parts:
        path.write_bytes(parts[how])
    elif how == "tar":
        tar(path)
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(name)
    text = refused(load, path)
    assert name in text
    if how == "tar" and not name.endswith("safetensors"):
        assert "load it there and save it again" in text
    assert not (tmp_path.parents[1] / "escaped").exists()


def with_header(change):
    """A safetensors file whose header is another one."""
    content = safetensors.torch.save({"w": torch.arange(6.0)})
    (length,) = struct.unpack("<Q", content[:8])
    header = change(json.loads(content[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize(
    "content",
    [with_header(lambda h: {"w": h["w"] | {"shape": [10**12]}}),
     with_header(lambda h: {"w": h["w"] | {"shape": [-1]}}),
     with_header(lambda h: {"w": h["w"] | {"data_offsets": [0, 10**12]}}),
     with_header(lambda h: {"w": h["w"] | {"dtype": "F33"}}),
     with_header(lambda h: {"w": h["w"] | {"shape": [2**62, 8]}}),
     with_header(lambda h: {**h, "v": h["w"]}),
     with_header(lambda h: b"[" * 100_000), with_header(lambda h: b"\xff\xfe"),
     struct.pack("<Q", 10**12) + b"{}", struct.pack("<Q", 2**64 - 1) + b"{}", b"\0" * 7],
)  # fmt: skip
def test_headers_of_safetensors_are_not_believed(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    assert "w.safetensors" in refused(load, tmp_path / "w.safetensors")


def coded():
    weight = torch.randn(4, 6)
    integers = torch.randint(-2, 2, (4, 6), dtype=torch.int16)
    mask = weight > 0.5
    codes = {
        "uniform": Uniform(torch.ones(4), None, integers, 2),
        "palette": Palette(torch.tensor([0.0, 1.0, 2.0]), torch.randint(0, 3, (4, 6))),
        "sparse": Sparse(mask, weight[mask]),
    }
    return {key: code.decode() for key, code in codes.items()}, codes


@pytest.mark.parametrize("key", ["uniform", "palette", "sparse"])
@pytest.mark.parametrize(
    "facts",
    [{"shape": [10**12]}, {"shape": [2**31 - 1] * 8}, {"shape": [-1, 6]}, {"shape": "x"},
     {"shape": [[4]]}, {"shape": [4] * 9}, {"bits": 10**9}, {"bits": 0}, {"k": 10**9}, {"k": -1},
     {"kept": 10**12}, {"places": 10**12}, {"scales": 10**12}, {"kind": "evil"}, {"kind": 7},
     {"same": 7}, {"same": "gone"}, {"book": "gone"}, {"rows": "x"}, {"more": 1}],
)  # fmt: skip
def test_facts_of_coded_weights_are_not_believed(key, facts):
    state, codes = coded()
    content, _ = pack_state(state, codes)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    known = json.loads(header["__metadata__"]["coded"])
    assert key in known
    known[key] |= facts
    header["__metadata__"]["coded"] = json.dumps(known)
    text = json.dumps(header).encode()
    changed = struct.pack("<Q", len(text)) + text + content[8 + length :]
    try:
        decoded, _ = unpack_state(changed)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        # What has no meaning for this kind of code changes nothing.
        assert not facts.keys() & {"shape", "kind", "same", "book", "more"}
        assert torch.equal(decoded[key], state[key])


def test_the_files_are_where_they_were(tmp_path):
    tar(tmp_path / "w.pth")
    with pytest.raises(UserError):
        read(tmp_path / "w.pth")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["w.pth"]
