"""Reading a file never runs its content, and keeps every tensor."""

import collections
import contextlib
import io
import os
import pickle
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import safetensors.torch
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.teachers.formats import safe_unpickler as inert
from ssdistill.teachers.formats.reading import read, sha256_of
from ssdistill.teachers.formats.states import flat_state

WEIGHT = torch.arange(6.0).view(2, 3)


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def attacks(marker):
    code = f"open({str(marker)!r}, 'w').close()"
    nested = io.BytesIO()
    torch.save(Calls(eval, code), nested)
    return {
        "system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "method": Calls(getattr(Path, "touch"), marker),  # noqa: B009
        "argument": Calls(collections.OrderedDict, [("a", Calls(eval, code))]),
        "factory": Calls(collections.defaultdict, Calls(eval, code)),
        "state": Calls(Namespace, state={"a": Calls(eval, code)}),
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(eval, code))),
        "file in a file": Calls(torch.storage._load_from_bytes, nested.getvalue()),
        "key": {Calls(getattr, Calls(__import__, "os"), "system"): 1},
    }


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("name", attacks("x"))
def test_nothing_that_a_file_names_is_run_and_its_tensors_are_read(name, save, tmp_path):
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    save({"first": attack, "state_dict": {"w": WEIGHT, "deep": [attack]}}, tmp_path / "w.pth")
    state = flat_state(read(tmp_path / "w.pth"), tmp_path / "w.pth")
    assert not marker.exists()
    torch.testing.assert_close(state["w"], WEIGHT)


@pytest.mark.parametrize("name", attacks("x"))
def test_nothing_in_a_plain_pickle_is_run(name, tmp_path):
    marker = tmp_path / "marker"
    content = {"w": WEIGHT.numpy(), "attack": attacks(marker)[name]}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    assert "w" in flat_state(read(tmp_path / "w.pkl"), tmp_path)
    assert not marker.exists()


def test_the_attacks_work_on_pickle_itself(tmp_path):
    # Else the tests above would prove nothing.
    for name in ("system", "eval", "method", "pickle in a pickle", "state"):
        marker = tmp_path / name.replace(" ", "_")
        pickle.loads(pickle.dumps(attacks(marker)[name]))
        assert marker.exists(), name


def setting(owner, attribute):
    """A pickle that sets ``attribute`` of what ``owner`` names."""
    return (
        b"\x80\x02c" + owner + b"\nN}X" + len(attribute).to_bytes(4, "little") + attribute
        + b"K\x01s\x86b."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (b"torch._utils\n_rebuild_tensor_v2", b"__defaults__"),
        (b"torch._utils\n_rebuild_tensor_v2", b"_run"),
        (b"torch\nfloat32", b"dump_patches"),
        (b"some.where\nelse", b"dump_patches"),
        (b"collections\nOrderedDict", b"items"),
        (b"numpy\ndtype", b"name"),
        (b"numpy\nndarray", b"__setstate__"),
    ],
)
def test_a_pickle_cannot_change_what_names_lead_to(owner, attribute):
    things = [torch._utils._rebuild_tensor_v2, torch.float32, inert.Inert, inert.Mapping,
              inert.NumberType, inert.Array, *inert.FUNCTIONS.values()]  # fmt: skip
    before = [(getattr(t, attribute.decode(), None), dir(t)) for t in things]
    with contextlib.suppress(AttributeError, TypeError, pickle.UnpicklingError):
        inert.load(io.BytesIO(setting(owner, attribute)))
    assert [(getattr(t, attribute.decode(), None), dir(t)) for t in things] == before


def test_that_pickle_would_set_attributes():
    name = __name__.encode() + b"\nCalls"
    pickle.loads(setting(name, b"changed"))
    assert Calls.changed == 1
    del Calls.changed


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_objects_of_other_projects_do_no_harm(save, tmp_path):
    content = {
        "args": Namespace(lr=0.1),
        "hyper_parameters": omegaconf.OmegaConf.create({"method": {"name": "byol"}}),
        "best": np.float64(0.5),
        "history": collections.defaultdict(list, a=[1]),
        "paths": [Path("a")],
        "state_dict": collections.OrderedDict(
            w=nn.Parameter(WEIGHT), half=WEIGHT.half(), view=WEIGHT[:, 1], none=None
        ),
    }
    save(content, tmp_path / "w.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.ckpt", weights_only=True)
    state = flat_state(read(tmp_path / "w.ckpt"), tmp_path)
    assert set(state) == {"w", "half", "view"}
    assert torch.equal(state["w"], WEIGHT) and torch.equal(state["view"], WEIGHT[:, 1])
    assert state["half"].dtype == torch.float16


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_pickles_of_arrays(protocol, tmp_path):
    arrays = {
        "float": np.arange(6.0).reshape(2, 3),
        "by_column": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big_endian": np.arange(4, dtype=">f4"),
        "texts": np.array(["a", "b"]),
        "objects": np.array([{}, 1], dtype=object),
    }
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "author": "x"}, protocol))
    state = flat_state(read(tmp_path / "w.pkl"), tmp_path)
    assert set(state) == {"float", "by_column", "big_endian"}
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_safetensors(tmp_path):
    safetensors.torch.save_file({"w": WEIGHT}, tmp_path / "w.safetensors")
    assert torch.equal(read(tmp_path / "w.safetensors")["w"], WEIGHT)


def damage(path, kind):
    if kind == "garbage":
        path.write_bytes(b"not a checkpoint at all" * 9)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        saving = save_legacy if kind == "legacy" else save_zip
        content = {"w": torch.randn(999), "args": Namespace()}
        if path.suffix == ".safetensors":
            safetensors.torch.save_file({"w": WEIGHT}, path)
        else:
            saving(content, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["garbage", "empty", "legacy", "zip"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.pkl"])
def test_a_damaged_file_is_named_in_one_line(name, kind, tmp_path):
    damage(tmp_path / name, kind)
    with pytest.raises(UserError, match=name) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_a_library_says_of_a_damaged_file_is_passed_on(tmp_path):
    damage(tmp_path / "w.safetensors", "zip")
    with pytest.raises(UserError, match=r"not a readable checkpoint \(Error while deserializing"):
        read(tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path):
    for look in (read, sha256_of):
        with pytest.raises(UserError, match=r"gone\.pth: no such file or folder; check the path"):
            look(tmp_path / "gone.pth")


def test_torchscript_is_refused(tmp_path):
    torch.jit.trace(nn.Linear(3, 2), WEIGHT).save(str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match=r"TorchScript archive: save its state_dict"):
        read(tmp_path / "w.pt")


def test_a_tar_is_not_unpacked(tmp_path):
    # torch's oldest format, which it would unpack.
    with tarfile.open(tmp_path / "w.pt", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_pickled_network_is_no_state_dict(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(nn.Linear(3, 2), tmp_path / "w.pt")
    with pytest.raises(UserError, match="save its state_dict instead"):
        flat_state(read(tmp_path / "w.pt"), tmp_path / "w.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_wrappers_are_stripped_and_the_state_of_training_is_left_out(tmp_path):
    saved = {
        "model": {"module._orig_mod.layer.0.module.w": WEIGHT},
        "optimizer": {"state": {"momentum": WEIGHT}},
        "optimizer_states": {"a": WEIGHT},
        "callbacks": {"w": WEIGHT},
    }
    assert list(flat_state(saved, tmp_path)) == ["layer.0.w"]


def test_two_tensors_of_one_name_are_refused(tmp_path):
    saved = {"model": {"w": WEIGHT}, "state_dict": {"w": WEIGHT}}
    with pytest.raises(UserError, match="two tensors named 'w'"):
        flat_state(saved, tmp_path)


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no named tensors"):
        flat_state({"epoch": 1}, tmp_path)


def test_parameters_become_plain_tensors_without_gradient(tmp_path):
    state = flat_state({"w": nn.Parameter(WEIGHT)}, tmp_path / "w.pth")
    assert type(state["w"]) is torch.Tensor and not state["w"].requires_grad
    assert torch.equal(state["w"], WEIGHT)
