"""Runtime files that would run native code, and how those compiled here are recognized."""

import io
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import load
from ssdistill.artifacts.files import write_artifact
from ssdistill.artifacts.runtimes import compiled_here
from ssdistill.artifacts.runtimes.aot_inductor import CompiledModel
from ssdistill.artifacts.runtimes.torch_export import ExportedModel, TorchExport
from ssdistill.commands.main import main
from ssdistill.errors import UserError
from ssdistill.evaluate.functions import open_subject
from ssdistill.evaluate.opening.encoders import open_encoder
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import RUNTIMES


class Mark:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 5)

    def forward(self, x_BCHW):
        return self.out(x_BCHW.mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Members of an exported program's archive."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "model.exported.pt2"
    TorchExport().write(Wrapped(Mean(), torch.rand(2, 3, 8, 8)), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def never_native(monkeypatch):
    """Fails where anything native would be loaded."""

    def loaded(*_, **__):
        raise AssertionError("native code was loaded")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", loaded)
    monkeypatch.setattr("torch.export.pt2_archive._package._load_aoti", loaded)


def archived(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def package(path, **facts):
    """As much of an AOTInductor package as is looked at before it is loaded."""
    facts = {"AOTI_MACHINE": platform.machine(), "AOTI_CPU_ISA": "", **facts}
    inside = "model/data/aotinductor/model"
    members = {f"{inside}/x.wrapper.so": b"\x7fELF native", "model/version": b"1"}
    return archived(path, {**members, f"{inside}/x_metadata.json": json.dumps(facts)})


def described(folder, name, runtime, **more):
    """A ``model.json`` for a file that is there, of which it claims whatever it likes."""
    content = (folder / name).read_bytes()
    facts = {"embed_dim": 5, "runtime": runtime, "input": "x", **more}
    write_artifact(folder, {name: content}, None, facts)
    return folder


def refused(opened, *args, **named):
    with pytest.raises(UserError) as caught:
        opened(*args, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def elsewhere(monkeypatch, tmp_path):
    """An installation that has compiled nothing."""
    monkeypatch.setenv(compiled_here.STATE, str(tmp_path / "another installation"))
    monkeypatch.setattr(compiled_here, "_this_process", set())


def test_native_code_wants_trust_wherever_it_is_opened(tmp_path, never_native, capsys):
    package(tmp_path / "model.aoti.pt2")
    claims = {"trust": True, "compiled_here": True, "lineage": {"trust": True}}
    folder = described(tmp_path, "model.aoti.pt2", "aot_inductor", **claims)
    for opened in (load, open_encoder, lambda path: open_subject(path, "digits")):
        text = refused(opened, folder)
        assert "is native code" in text and "trust=True (--trust)" in text
    assert "is native code" in refused(CompiledModel, folder / "model.aoti.pt2", 5)
    assert main(["probe", str(folder), "--data", "digits"]) == 2
    assert "is native code" in capsys.readouterr().err


def test_trust_opens_it(tmp_path, monkeypatch, capsys):
    package(tmp_path / "model.aoti.pt2")
    folder = described(tmp_path, "model.aoti.pt2", "aot_inductor")
    opened = []

    def loaded(path):
        opened.append(path)
        raise RuntimeError("as far as a file without native code goes")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", loaded)
    assert "as far as" in refused(load, folder, trust=True)
    assert "as far as" in refused(open_encoder, folder, trust=True)
    assert main(["probe", str(folder), "--data", "digits", "--trust"]) == 2
    assert "as far as" in capsys.readouterr().err
    assert opened == [str(folder / "model.aoti.pt2")] * 3


def test_what_was_compiled_here_is_known_in_later_processes(tmp_path, monkeypatch):
    elsewhere(monkeypatch, tmp_path)
    path = package(tmp_path / "model.aoti.pt2")
    assert not compiled_here.is_known(path)
    compiled_here.remember(path)
    code = (
        "import sys; from pathlib import Path; "
        "from ssdistill.artifacts.runtimes import compiled_here as c;"
        "sys.exit(0 if c.is_known(Path(sys.argv[1])) else 3)"
    )
    command = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(command, check=False).returncode == 0
    path.write_bytes(path.read_bytes() + b"\0")
    assert subprocess.run(command, check=False).returncode == 3


def test_only_notes_that_nobody_else_could_write_count(tmp_path, monkeypatch):
    elsewhere(monkeypatch, tmp_path)
    path = package(tmp_path / "model.aoti.pt2")
    compiled_here.remember(path)
    monkeypatch.setattr(compiled_here, "_this_process", set())
    assert compiled_here.is_known(path)
    folder = compiled_here.state_folder() / "compiled"
    folder.chmod(0o777)
    assert not compiled_here.is_known(path)
    folder.chmod(0o700)
    (note,) = folder.iterdir()
    note.unlink()
    note.symlink_to(path)
    assert not compiled_here.is_known(path)


def test_without_a_folder_for_notes_this_process_still_knows(tmp_path, monkeypatch):
    elsewhere(monkeypatch, tmp_path)
    (tmp_path / "another installation").write_text("a file where the folder should be")
    path = package(tmp_path / "model.aoti.pt2")
    compiled_here.remember(path)
    assert compiled_here.is_known(path)
    monkeypatch.setattr(compiled_here, "_this_process", set())
    assert not compiled_here.is_known(path)


@pytest.mark.parametrize("runtime", sorted(RUNTIMES.classes))
@pytest.mark.parametrize("own_name", [True, False])
def test_a_package_under_another_name_or_for_another_runtime_is_not_run(
    runtime, own_name, tmp_path, never_native
):
    kind = RUNTIMES[runtime]
    try:
        kind.require()
    except UserError as error:
        pytest.skip(str(error))
    name = kind.file if own_name else "model.onnx" if runtime != "onnxruntime" else "model.pte"
    package(tmp_path / name)
    files = getattr(kind, "files", (name,)) if own_name else (name,)
    for other in files[1:]:
        (tmp_path / other).write_bytes(b"")
    contents = {one: (tmp_path / one).read_bytes() for one in files}
    write_artifact(tmp_path, contents, None, {"embed_dim": 5, "runtime": runtime})
    text = refused(load, tmp_path)
    if not own_name:
        assert f"{runtime} expects" in text


def test_native_code_inside_of_an_exported_program_is_refused(exported, tmp_path, never_native):
    inside = {"archive/data/aotinductor/model/x.wrapper.so": b"\x7fELF"}
    path = archived(tmp_path / "model.exported.pt2", exported | inside)
    assert "would be executed on opening" in refused(ExportedModel, path, 5)


@pytest.mark.parametrize("keep", [True, False])
def test_layouts_of_earlier_versions_never_reach_an_unpickler(exported, tmp_path, keep):
    from torch._export.serde.schema import SCHEMA_VERSION

    evil = io.BytesIO()
    torch.save({"a": Mark(tmp_path / "ran")}, evil)
    members = {
        "version": ".".join(map(str, SCHEMA_VERSION)),
        "serialized_exported_program.json": exported["archive/models/model.json"],
        "serialized_state_dict.pt": evil.getvalue(),
        "serialized_constants.pt": b"",
        "serialized_example_inputs.pt": b"",
    }
    path = archived(tmp_path / "model.exported.pt2", members | (exported if keep else {}))
    assert str(path) in refused(load, described(tmp_path, path.name, "torch_export"))
    for name in ("archive/data/weights/model.pt", "archive/data/constants/model.pt"):
        archived(path, {**exported, name: evil.getvalue()})
        assert "would be executed on opening" in refused(ExportedModel, path, 5)
    assert not (tmp_path / "ran").exists()


def with_program(exported, change):
    program = json.loads(exported["archive/models/model.json"])
    change(program)
    return exported | {"archive/models/model.json": json.dumps(program)}


def _set(*keys):
    *path, last, value = keys

    def change(program):
        place = program
        for key in path:
            place = place[key]
        place[last] = value

    return change


GRAPH = ("graph_module", "graph", "nodes", 0)
IMPORTING = json.dumps([1, {"type": "collections.defaultdict", "children_spec": [], "context":
    json.dumps({"default_factory_module": "evil", "default_factory_name": "x",
                "dict_context": []})}])  # fmt: skip
ENUM = json.dumps([1, {"type": "builtins.dict", "children_spec": [], "context":
    json.dumps([{"__enum__": True, "fqn": "evil:X", "name": "a"}])}])  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        *(_set(*GRAPH, "target", target) for target in (
            "torch.hub.load", "torch.load", "torch.ops.load_library", "torch.os.system",
            "torch.ops.aten.from_file.default", "torch.ops.aten.from_file",
            "torch.ops.higher_order.triton_kernel_wrapper_mutation", "os.system", "#evil:x",
            "_operator.methodcaller",
            "torch.ops.mine.x.default", "torch.ops.aten.__class__", 7, None, ["torch"])),
        *(_set("graph_module", "module_call_graph", 0, "signature", key, value)
          for key in ("in_spec", "out_spec") for value in (IMPORTING, ENUM, "[1, 2]", "{", 7)),
        _set(*GRAPH, "metadata", {"nn_module_stack": "a,b,c"}),
        _set(*GRAPH, "metadata", {"torch_fn": "os;system"}),
        _set("graph_module", "treespec_namedtuple_fields", {"a": 1}),
        _set("guards_code", ["exit()"]),
        _set("range_constraints", {"exec('1')": {"min_val": 1, "max_val": 2}}),
        _set("range_constraints", {"9**9**9": {"min_val": 1, "max_val": 2}}),
        _set("range_constraints", {"s0 * " * 999 + "s0": {"min_val": 1, "max_val": 2}}),
        _set(*GRAPH, "inputs", [{"name": "x", "kind": 1, "arg": {"as_custom_obj": {"name": "x"}}}]),
    ],
)  # fmt: skip
def test_a_program_names_nothing_but_operators_and_plain_types(change, exported, tmp_path):
    path = archived(tmp_path / "model.exported.pt2", with_program(exported, change))
    assert "would be executed on opening" in refused(ExportedModel, path, 5)


@pytest.mark.parametrize("where", ["weights", "constants"])
@pytest.mark.parametrize("facts", [
    {"use_pickle": True}, {"use_pickle": 1}, {"path_name": "../../models/model.json"},
    {"path_name": "custom_obj_0"}, {"path_name": "opaque_obj_0"}, {"path_name": 7},
])  # fmt: skip
def test_payloads_are_raw_numbers(where, facts, exported, tmp_path):
    name = f"archive/data/{where}/model_{where}_config.json"
    config = json.loads(exported[name])
    entry = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": None}
    config["config"]["evil"] = entry | facts
    path = archived(tmp_path / "model.exported.pt2", {**exported, name: json.dumps(config)})
    assert "would be executed on opening" in refused(ExportedModel, path, 5)


@pytest.mark.parametrize("how", ["compressed", "claims", "twice", "two roots", "encrypted", "cut",
                                 "deep", "big expression", "no program"])  # fmt: skip
def test_archives_that_two_readers_could_read_differently_are_refused(how, exported, tmp_path):
    path = tmp_path / "model.exported.pt2"
    archived(path, exported)
    content = bytearray(path.read_bytes())
    first = content.find(b"PK\x01\x02")
    if how == "compressed":
        bomb = {"archive/data/weights/weight_99": b"\0" * 2**22}
        archived(path, exported | bomb, zipfile.ZIP_DEFLATED)
    elif how == "claims":
        content[first + 20 : first + 28] = (2**31).to_bytes(4, "little") * 2
        path.write_bytes(content)
    elif how == "twice":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/models/model.json", b"{}")
    elif how == "two roots":
        archived(path, exported | {"other/data/aotinductor/model/x.so": b""})
    elif how == "encrypted":
        content[first + 8] |= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "deep":
        archived(path, {**exported, "archive/models/model.json": b"[" * 100_000})
    elif how == "big expression":
        archived(path, {**exported, "archive/models/model.json": b"9" * 10**6})
    else:
        archived(path, {k: v for k, v in exported.items() if "model.json" not in k})
    refused(ExportedModel, path, 5)


@pytest.mark.parametrize("member", ["other/extra", "archive/"])
def test_a_harmless_member_outside_the_root_or_without_a_name_is_refused(
    member, exported, tmp_path
):
    path = archived(tmp_path / "model.exported.pt2", exported | {member: b""})
    assert f"'{member}'" in refused(ExportedModel, path, 5)


def test_the_copy_that_pytorch_sees_gives_the_same_numbers(exported, tmp_path):
    path = archived(tmp_path / "model.exported.pt2", exported)
    x_BCHW = torch.rand(3, 3, 8, 8)
    weight, bias = None, None
    config = json.loads(exported["archive/data/weights/model_weights_config.json"])["config"]
    for name, entry in config.items():
        raw = exported[f"archive/data/weights/{entry['path_name']}"]
        tensor = torch.frombuffer(bytearray(raw), dtype=torch.float32)
        weight, bias = (tensor.view(5, 3), bias) if name.endswith("weight") else (weight, tensor)
    found = ExportedModel(path, 5)(x_BCHW).embedding_BD
    assert torch.allclose(found, x_BCHW.mean((2, 3)) @ weight.T + bias, atol=1e-6)


def test_a_state_folder_is_the_users_own(monkeypatch):
    monkeypatch.delenv(compiled_here.STATE)
    monkeypatch.setenv("XDG_STATE_HOME", "/some/where")
    assert compiled_here.state_folder() == Path("/some/where/ssdistill")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert compiled_here.state_folder() == Path.home() / ".local/state/ssdistill"
    # Relative, it would be found in whatever folder the command is started in.
    monkeypatch.setenv(compiled_here.STATE, "relative")
    with pytest.raises(UserError, match="SSDISTILL_STATE=relative: expected an absolute path"):
        compiled_here.state_folder()


def test_an_artifact_is_compiled_here_where_all_its_files_are(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_here, "_this_process", set())
    monkeypatch.setenv(compiled_here.STATE, str(tmp_path / "state"))
    files = [tmp_path / name for name in ("a.bin", "b.bin")]
    monkeypatch.setattr(compiled_here, "weight_files", lambda folder: files)
    for file in files:
        assert not compiled_here.is_known_artifact(tmp_path)
        file.write_bytes(file.name.encode())
        compiled_here.remember(file)
    assert compiled_here.is_known_artifact(tmp_path)
    files[0].write_bytes(b"exchanged")
    assert not compiled_here.is_known_artifact(tmp_path)
