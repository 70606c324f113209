"""SECURITY.md lists every parser there is, and the tests it names exist."""

import ast
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdistill.data.sources.npz import NpzFile
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.settings.registry import RUNTIMES, TEACHERS
from ssdistill.train.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_the_page_names_exists(file):
    functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text()))
                 if isinstance(node, ast.FunctionDef)}  # fmt: skip
    assert {name for where, name in NAMED if where == file} <= functions


def test_the_page_names_every_file_of_every_runtime_and_every_origin():
    for runtime in RUNTIMES.classes.values():
        for name in getattr(runtime, "files", (runtime.file,)):
            assert f"`{name}`" in PAGE or f"`.{name.rpartition('.')[2]}`" in PAGE, name
    for kind in TEACHERS.classes:
        assert kind in PAGE, kind
    for path in re.findall(r"`((?:artifacts|models|teachers|train)/[\w/]+\.py)`", PAGE):
        assert (ROOT / "ssdistill" / path).is_file(), path


def test_every_row_of_the_page_has_a_test_or_says_why_not():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        assert "`tests/" in row or row.endswith(("| none |", "torchvision's |")), row


FORBIDDEN = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "dill.load",
    "yaml.unsafe_load", "yaml.full_load", "joblib.load", "marshal.loads", "shelve.open",
    "torch.jit.load", "torch.hub.load", "torch.ops.load_library", "torch.classes.load_library",
    "ctypes.cdll.LoadLibrary", "importlib.machinery.ExtensionFileLoader",
}  # fmt: skip
GUARDED = {
    "torch.export.load": "artifacts/runtimes/torch_export.py",
    "torch._inductor.aoti_load_package": "artifacts/runtimes/aot_inductor.py",
}
"""Readers that run code of some files, and the one place that checks a file before."""


def calls(path):
    """(dotted name, keyword arguments) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            named = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), named


def test_nothing_in_the_package_reads_a_file_in_a_way_that_runs_it():
    for path in sorted((ROOT / "ssdistill").rglob("*.py")):
        place = path.relative_to(ROOT / "ssdistill").as_posix()
        for name, named in calls(path):
            assert name not in FORBIDDEN, (place, name)
            assert GUARDED.get(name, place) == place, (place, name)
            assert named.get("allow_pickle") is not True, place
            if name == "torch.load" and named.get("weights_only") is not True:
                # With an unpickler of its own that runs nothing.
                assert place == "teachers/formats/reading.py" and "pickle_module" in named


def test_yaml_builds_no_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    for tag in ("python/object/apply:os.mkdir", "python/name:os.system", "python/object/new:dict"):
        path.write_text(f"schema: 1\nname: !!{tag} ['{tmp_path / 'ran'}']\n")
        with pytest.raises(UserError):
            load_experiment(path, [])
        with pytest.raises(UserError):
            load_experiment("quickstart", [f"name=!!{tag} ['{tmp_path / 'ran'}']"])
    assert not (tmp_path / "ran").exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "evil.npz", train_images=evil)
    with pytest.raises(UserError):
        NpzFile(tmp_path / "evil.npz").load("train_images")
    assert not (tmp_path / "ran").exists()


def test_checkpoints_of_a_run_are_not_unpickled(tmp_path):
    for name, save in {"a": torch.save, "b": lambda x, f: f.write_bytes(pickle.dumps(x))}.items():
        save({"step": Evil(tmp_path / "ran")}, tmp_path / name)
        with pytest.raises(UserError, match="not a readable checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


PARSERS = {
    "json.load", "json.loads", "np.load", "np.memmap", "np.fromfile", "np.lib.format.read_array",
    "Image.open", "decode_jpeg", "decode_image", "zipfile.ZipFile", "tarfile.open", "netrc.netrc",
    "yaml.parse", "onnx.load", "onnx.load_model_from_string", "core.read_model", "torch.load",
    "safetensors.torch.load", "safetensors.torch.load_file", "safetensors.safe_open", "csv.reader",
    "ElementTree.parse", "ElementTree.fromstring", "h5py.File", "lmdb.open", "pydicom.dcmread",
    "TiffFile", "tifffile.TiffFile", "pq.ParquetFile", "parquet.ParquetFile", "ipc.open_file",
    "ipc.open_stream", "pa.memory_map",
}  # fmt: skip
OWN = {
    "chain/benchmark.py",
    "commands/probe/page.py", "compress/quantize.py", "compress/int8/bias_correction.py",
    "compress/int8/initializers.py", "compress/int8/onnx_file.py",
    "compress/int8/openvino_file.py", "evaluate/corruptions/digital.py", "evaluate/subject.py",
    "label_free/embedding/npz_file.py", "measure/memory.py", "measure/parameters.py",
    "record/run.py", "record/wandb_logger.py", "testing/protocols.py", "testing/sharding.py",
}  # fmt: skip
"""They parse what the same process has just written, or has opened by a reader of the page; or
they write only."""


def test_every_module_that_parses_a_file_is_on_the_page():
    package = ROOT / "ssdistill"
    parsing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if PARSERS & {name for name, _ in calls(path)}
    }
    assert parsing > OWN
    assert sorted(name for name in parsing - OWN if f"`{name}`" not in PAGE) == []
